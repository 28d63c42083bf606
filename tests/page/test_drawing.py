"""The page in Chromium against a real server: images are drawn, seen growing, cancelled, kept."""

import os
import re
import time
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.page.conftest import DRAWN_MS, KEY, WITH_KEY, draw, fact, finished, open_page
from tests.system.conftest import ServerProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

# Notes each change of the text and the preview on the stage.
OBSERVER = """
window.seen = {texts: new Set(), previews: new Set()};
const stage = document.getElementById("stage");
new MutationObserver(() => {
  for (const text of stage.querySelectorAll(".hud-text")) seen.texts.add(text.textContent);
  for (const image of stage.querySelectorAll(".layer.preview")) seen.previews.add(image.src);
}).observe(stage, {subtree: true, childList: true, characterData: true});
"""


def natural_size(page: Page, selector: str) -> list[int]:
    """Return the pixels of an image that has been decoded."""
    size: list[int] = page.eval_on_selector(
        selector, "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    return size


def test_an_image_is_seen_growing_and_is_still_there_after_a_reload(page: Page) -> None:
    page.evaluate(OBSERVER)
    draw(page, "a rocket on a blue background", steps=24, shape="1280x768")
    image = finished(page)
    expect(image).to_have_attribute("alt", "a rocket on a blue background")
    assert natural_size(page, ".stage .layer.final") == [1280, 768]
    expect(page).to_have_title("hyimage")
    texts = page.evaluate("[...seen.texts]")
    steps = [int(n) for n in re.findall(r"Step (\d+) of 24", " ".join(texts))]
    assert len(steps) >= 3
    assert steps == sorted(steps)
    assert page.evaluate("seen.previews.size") >= 2
    expect(fact(page, "Seed")).to_have_text("3")
    expect(fact(page, "Size")).to_have_text(re.compile("1280 . 768"))
    expect(page.locator(".evaluations .strip i[data-kind=computed]")).to_have_count(24)
    page.reload()
    page.wait_for_selector("html[data-loaded]")
    assert natural_size(page, ".stage .layer.final") == [1280, 768]
    expect(page.locator(".tile")).to_have_count(1)
    assert natural_size(page, ".tile img") == [1280, 768]


def test_a_newcomer_has_a_first_image_within_20_seconds_of_opening_the_page(
    context: BrowserContext,
) -> None:
    context.add_init_script(WITH_KEY)
    page = context.new_page()
    start = time.monotonic()
    open_page(page)
    page.get_by_role("button", name="Draw an example").click()
    finished(page)
    # Others' work on the same cores is not the page's: processes that wait for a core, per core.
    share = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - start < 20 * share


def test_steps_that_a_cache_reused_are_marked(page: Page) -> None:
    page.get_by_text("Scheduler, step caches, format").click()
    page.get_by_label("High", exact=True).check()
    draw(page, "a cat in the snow", steps=30)  # of 12 none would be reused
    finished(page)
    reused = page.locator(".evaluations .strip i[data-kind=reused]").count()
    computed = page.locator(".evaluations .strip i[data-kind=computed]").count()
    assert reused > 0
    assert reused + computed == 30
    expect(page.locator(".evaluations")).to_contain_text(
        f"{computed} steps computed, {reused} reused"
    )


def test_several_images_of_a_task_are_drawn_one_after_the_other(page: Page) -> None:
    page.get_by_role("button", name="More images").click()
    draw(page, "a frog at sunset", steps=2, seed=7)
    expect(page.locator(".tile img")).to_have_count(2, timeout=DRAWN_MS)
    expect(page.locator(".tile .state")).to_have_count(0, timeout=DRAWN_MS)
    labels = [tile.get_attribute("aria-label") for tile in page.locator(".tile").all()]
    assert labels == ["a frog at sunset, seed 7", "a frog at sunset, seed 8"]


def test_a_task_waits_in_the_queue_is_cancelled_and_the_server_stops_drawing_it(
    page: Page, server: ServerProcess
) -> None:
    draw(page, "a dog in a meadow", steps=100)
    expect(page.locator(".hud-text")).to_contain_text("Step ", timeout=DRAWN_MS)
    draw(page, "a fish underwater", steps=99)
    draw(page, "a panda in the snow", steps=98)
    expect(page.locator(".hud-text")).to_contain_text("queue")
    for _ in range(3):
        page.locator(".tile", has=page.locator(".line")).first.click()
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(page.locator(".stage h2")).to_have_text("Cancelled")
    expect(page.locator(".tile .line")).to_have_count(0)
    ends = "SELECT count(*) FROM tasks WHERE status = 'running'"
    wait_until(lambda: server.rows(ends) == [(0,)])


def test_a_reload_while_an_image_is_drawn_loses_nothing(page: Page) -> None:
    draw(page, "a robot at night", steps=16)
    expect(page.locator(".hud-text")).to_contain_text("Step ", timeout=DRAWN_MS)
    page.reload()
    finished(page)
    expect(page.locator(".tile")).to_have_count(1)


def test_a_stream_that_breaks_off_continues_where_it_was(page: Page) -> None:
    after: list[str | None] = []

    def break_off(route: Route) -> None:
        after.append(route.request.headers.get("last-event-id"))
        if len(after) > 1:
            route.continue_()
            return
        first = 'id: 7f-1\nevent: started\ndata: {"estimatedSeconds": 9}\n\n: a comment\n\n'
        route.fulfill(content_type="text/event-stream", body=first)

    page.route("**/events?*", break_off)
    draw(page, "a penguin on the beach", steps=2)
    finished(page)
    assert after == [None, "7f-1"]


def test_a_server_without_event_streams_is_polled_also_when_it_is_away_for_a_while(
    page: Page,
) -> None:
    polls: list[str] = []
    answer: dict[str, Any] = {"data": [], "errors": [{"code": "unknownPath", "message": "nothing"}]}
    page.route("**/events?*", lambda route: route.fulfill(status=404, json=answer))

    def lose_the_first(route: Route) -> None:
        if "getResponse" not in (route.request.post_data or ""):
            route.continue_()
            return
        polls.append(route.request.url)
        if len(polls) < 3:
            route.abort()
        else:
            route.continue_()

    page.route("**/v1", lose_the_first)
    draw(page, "a banana on a white background", steps=6)
    finished(page)
    assert len(polls) >= 3


def test_an_image_is_drawn_in_a_browser_that_stores_nothing(context: BrowserContext) -> None:
    context.add_init_script(
        f"{WITH_KEY}; Object.defineProperty(window, 'indexedDB', {{value: undefined}})"
    )
    page = context.new_page()
    open_page(page)
    expect(page.locator("#gallery-note")).to_contain_text("stores nothing")
    draw(page, "a sun in the sky", steps=2)
    finished(page)
    expect(page.locator(".tile")).to_have_count(1)


def test_an_image_is_deleted_from_the_browser(page: Page) -> None:
    draw(page, "a heart on a pink background", steps=1)
    finished(page)
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".tile")).to_have_count(0)
    expect(page.locator(".stage h2")).to_have_text("What should it draw?")
    page.reload()
    page.wait_for_selector("html[data-loaded]")
    expect(page.locator(".tile")).to_have_count(0)


def test_a_refusal_says_why_and_can_be_tried_again(page: Page) -> None:
    fault = {"code": "rateLimitExceeded", "message": "200 images are queued; try again later."}
    busy = {"data": [], "errors": [fault], "error": fault}
    page.route("**/v1", lambda route: route.fulfill(status=400, json=busy), times=1)
    draw(page, "a star at night", steps=1)
    expect(page.get_by_role("alert").filter(has_text="That did not work")).to_contain_text(
        "200 images are queued"
    )
    page.get_by_role("button", name="Try again").click()
    finished(page)


def test_the_whole_form_works_from_the_keyboard(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("a mushroom in a meadow")
    page.get_by_role("textbox", name="Steps").fill("2")
    page.locator("#more summary").focus()
    page.keyboard.press("Enter")
    scheduler = page.get_by_role("combobox", name="Scheduler")
    scheduler.focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("dpm 2m karras")
    expect(page.get_by_role("option").first).to_have_text(re.compile(r"DPM\+\+ 2M Karras"))
    page.keyboard.press("Enter")
    expect(scheduler).to_have_value("DPM++ 2M Karras")
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Control+Enter")
    finished(page)
    expect(fact(page, "Scheduler")).to_have_text("DPM++ 2M Karras")


def test_a_prompt_without_a_known_word_is_noted_at_once(page: Page) -> None:
    prompt, note = page.get_by_label("Prompt", exact=True), page.locator("#prompt-note")
    prompt.fill("quarterly figures of a red bank")
    expect(note).to_contain_text("draws none of that")
    prompt.fill("a red car and a kitten in the snow")
    expect(note).to_have_text(re.compile(r"Draws: car\s*cat\s*in the snow\s*red"))
    assert KEY not in page.content()
