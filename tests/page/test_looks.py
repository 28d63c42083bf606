"""Accessibility by axe-core, and screenshots: light, dark, and as wide as a phone.

The screenshots of README are made with SCREENSHOTS=docs/images; without it they go to a folder of
pytest's.
"""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.page.conftest import DESKTOP, DRAWN_MS, PHONE, WITH_KEY, draw, finished, open_page
from tests.system.conftest import ServerProcess

pytestmark = pytest.mark.slow

SERIOUS = ("serious", "critical")
# The pictures that README shows.
PICTURES = {
    "light": ("show_drawing", "show_comparison"),
    "dark": ("show_drawing",),
    "phone": ("show_image",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


def serious_faults(page: Page) -> list[str]:
    """Return what axe-core finds on the page as it is now."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['target']}: {node['failureSummary']}"
        for fault in violations
        if fault["impact"] in SERIOUS
        for node in fault["nodes"]
    ]


def overflow_px(page: Page) -> int:
    """Return by how much the page is wider than its window."""
    excess: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return excess


def save(page: Page, path: Path) -> None:
    """Save what is in sight as WebP."""
    image = Image.open(BytesIO(page.screenshot()))
    image.convert("RGB").save(path, quality=88, method=6)
    colours = image.convert("RGB").resize((64, 64)).getcolors(64 * 64)
    assert colours is not None
    assert len(colours) > 50, "an empty page"


@pytest.mark.parametrize(
    ("name", "scheme", "viewport"),
    [("light", "light", DESKTOP), ("dark", "dark", DESKTOP), ("phone", "light", PHONE)],
)
def test_every_state_is_accessible_and_fits_and_has_its_picture(
    browser: Browser,
    server: ServerProcess,
    folder: Path,
    name: str,
    scheme: str,
    viewport: ViewportSize,
) -> None:
    context = browser.new_context(
        base_url=server.url,
        viewport=viewport,
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=1 if name != "phone" else 2,
        reduced_motion="reduce",
        is_mobile=name == "phone",
    )
    context.add_init_script(WITH_KEY)
    page = context.new_page()
    open_page(page)
    faults: dict[str, list[str]] = {}

    def look(state: str) -> None:
        faults[state] = serious_faults(page)
        assert overflow_px(page) <= 0, state

    look("empty")
    states: list[Callable[[Page], None]] = [show_open_form, show_drawing, show_image, show_code]
    for show in [*states, show_key, show_comparison, show_failure]:
        show(page)
        look(show.__name__)
        if show.__name__ in PICTURES[name]:
            save(page, folder / f"page_{show.__name__.removeprefix('show_')}_{name}.webp")
        close_dialogs(page)
    assert {state: found for state, found in faults.items() if found} == {}
    context.close()


def show_open_form(page: Page) -> None:
    for summary in page.locator(".composer summary").all():
        summary.click()
    page.get_by_label("Custom", exact=True).check()
    page.get_by_role("combobox", name="Scheduler").fill("karras")


def show_drawing(page: Page) -> None:
    page.reload()
    page.wait_for_selector("html[data-loaded]")
    for prompt in ("a slice of pizza in the desert", "a rocket above a red heart at night"):
        draw(page, prompt, steps=6)
        finished(page)
        expect(page.locator(".caption")).to_have_text(prompt)
    draw(page, "a red car to the left of a panda in the snow", steps=24, shape="1280x768")
    expect(page.locator(".hud-text")).to_contain_text("Step 1", timeout=DRAWN_MS)  # or 10 to 19
    expect(page.locator(".layer.preview")).to_have_count(1)
    page.locator(".stage").evaluate("stage => stage.scrollIntoView({block: 'start'})")


def show_image(page: Page) -> None:
    finished(page)
    expect(page.locator(".hud")).to_have_count(0)


def show_code(page: Page) -> None:
    page.get_by_role("button", name="Copy as code").click()


def show_key(page: Page) -> None:
    page.get_by_role("button", name="Key", exact=True).click()


def show_comparison(page: Page) -> None:
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("textbox", name="Steps").fill("4")
    page.get_by_role("button", name="Generate and compare").click()
    expect(page.locator(".differences")).to_be_visible(timeout=DRAWN_MS)


def show_failure(page: Page) -> None:
    fault = {
        "code": "serviceUnavailable",
        "message": "The server is stopping; send the task again.",
    }
    answer = {"data": [], "errors": [fault]}
    page.route("**/v1", lambda route: route.fulfill(status=503, json=answer), times=1)
    draw(page, "a cat", steps=1)
    expect(page.locator(".stage h2")).to_have_text("That did not work")


def close_dialogs(page: Page) -> None:
    page.evaluate("document.querySelectorAll('dialog[open]').forEach((dialog) => dialog.close())")
