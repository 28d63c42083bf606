"""The page on a server with keys: refused without one, and the key stays in its tab."""

import json

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.page.conftest import KEY, draw, finished, open_page, watch_faults

pytestmark = pytest.mark.slow

STORED = """async () => {
  const databases = await indexedDB.databases();
  const images = await new Promise((resolve) => {
    const request = indexedDB.open("hyimage");
    request.onsuccess = () => {
      const all = request.result.transaction("images").objectStore("images").getAll();
      all.onsuccess = () => resolve(all.result);
    };
  });
  return JSON.stringify({databases, images, local: {...localStorage}, cookie: document.cookie});
}"""


@pytest.fixture
def stranger(context: BrowserContext) -> Page:
    """The page without a key."""
    page = context.new_page()
    open_page(page)
    return page


def test_without_a_key_nothing_is_drawn_and_the_page_requests_one(stranger: Page) -> None:
    draw(stranger, "a cat in the snow", steps=1)
    dialog = stranger.get_by_role("dialog")
    expect(dialog).to_contain_text("needs an API key")
    dialog.get_by_role("textbox", name="API key").fill("not a key")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_have_text("The server does not accept this key.")
    dialog.get_by_role("button", name="Not now").click()
    expect(stranger.get_by_role("alert").filter(has_text="did not work")).to_be_visible()
    expect(stranger.locator(".tile img")).to_have_count(0)


def test_the_key_opens_the_server_and_stays_in_the_tab(
    stranger: Page, context: BrowserContext
) -> None:
    faults, urls = watch_faults(stranger), []
    stranger.on("request", lambda request: urls.append(request.url))
    draw(stranger, "a cat in the snow", steps=1)
    stranger.get_by_role("textbox", name="API key").fill(KEY)
    stranger.keyboard.press("Enter")
    finished(stranger)
    stranger.reload()
    stranger.wait_for_selector("html[data-loaded]")
    draw(stranger, "a dog in the snow", steps=1)
    finished(stranger)
    stored = stranger.evaluate(STORED)
    assert len(json.loads(stored)["images"]) == 2
    assert KEY not in stored
    assert KEY not in stranger.content()
    assert not [url for url in urls if KEY in url]
    assert faults == []
    other_tab = context.new_page()
    open_page(other_tab)
    draw(other_tab, "a frog in the snow", steps=1)
    expect(other_tab.get_by_role("dialog")).to_contain_text("needs an API key")
    other_tab.close()
