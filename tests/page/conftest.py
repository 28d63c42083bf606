"""A real server with the tiny checkpoint and one key, and the system's Chromium, headless."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Response,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.system.conftest import ServerProcess

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
CHECKPOINT = Path("checkpoints/tiny")  # shown on the page, so without the folder it is in
KEY = "a-key-of-the-page-tests"
DESKTOP: ViewportSize = {"width": 1440, "height": 1000}
PHONE: ViewportSize = {"width": 390, "height": 844}
DRAWN_MS = 60_000  # an image takes 2 s on idle cores
expect.set_options(timeout=20_000)

# Puts the key where the page keeps it, as its dialog does.
WITH_KEY = f"sessionStorage.setItem('hyimage-key', '{KEY}')"


@pytest.fixture(scope="session")
def chromium() -> str:
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return CHROMIUM


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser for one file: Playwright holds an event loop, and tests elsewhere start theirs."""
    # Chromium's own sandbox does not start as root, which CI is.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of the page; each task of them has a UUID of its own."""
    folder = tmp_path_factory.mktemp("server")
    server = ServerProcess(folder, CHECKPOINT, HYIMAGE_API_KEYS=KEY, OMP_NUM_THREADS="1")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def context(browser: Browser, server: ServerProcess) -> Iterator[BrowserContext]:
    """A browser that has never been here: nothing stored, no key."""
    context = browser.new_context(base_url=server.url, viewport=DESKTOP, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """The page with a key, loaded. No test leaves an error in its console."""
    context.add_init_script(WITH_KEY)
    page = context.new_page()
    faults = watch_faults(page)
    open_page(page)
    yield page
    assert faults == []


def watch_faults(page: Page) -> list[str]:
    """Return a list that takes exceptions, breaches of the policy and files that are missing.

    That the API refuses something is a part of some tests; Chromium logs it as an error.
    """
    faults: list[str] = []

    def note_error(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            faults.append(message.text)

    def note_missing(response: Response) -> None:
        if response.status >= 400 and "/page/" in response.url:
            faults.append(f"{response.status} {response.url}")

    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", note_error)
    page.on("response", note_missing)
    return faults


def open_page(page: Page, path: str = "/") -> None:
    page.goto(path)
    page.wait_for_selector("html[data-loaded]")


def draw(
    page: Page, prompt: str, *, steps: int = 4, seed: int = 3, shape: str = "1024x1024"
) -> None:
    """Fill in the form and send it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.locator(f".shape input[value='{shape}']").check()
    page.get_by_role("textbox", name="Steps").fill(str(steps))
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Generate").click()


def finished(page: Page) -> Locator:
    """Return the finished image on the stage, once it is there."""
    image = page.locator(".stage .layer.final")
    expect(image).to_be_visible(timeout=DRAWN_MS)
    return image


def fact(page: Page, name: str) -> Locator:
    """Return a value under the finished image."""
    return page.locator(".facts div", has=page.locator("dt", has_text=name)).locator("dd")
