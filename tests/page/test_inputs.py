"""Input images on the page: chosen, dropped, pasted, ordered, sent, and shown as files in code."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import GOLDEN
from tests.page.conftest import (
    DESKTOP,
    DRAWN_MS,
    KEY,
    WITH_KEY,
    draw,
    fact,
    finished,
    open_page,
    watch_faults,
)
from tests.page.test_comparing import BYTES
from tests.page.test_looks import overflow_px, serious_faults
from tests.system.conftest import ServerProcess

pytestmark = pytest.mark.slow

INPUTS = GOLDEN / "edit"
GREY, ALPHA, WIDE = (INPUTS / f"edit_in_{name}.png" for name in ("grey", "alpha", "wide"))
SHAPE = "256x256"

# Gives a file to the page as the system does when one is pasted or dropped.
GIVE = """([kind, name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type}));
  const shared = {bubbles: true, cancelable: true};
  const event = kind === "paste"
    ? new ClipboardEvent("paste", {...shared, clipboardData: data})
    : new DragEvent("drop", {...shared, dataTransfer: data});
  document.getElementById("composer").dispatchEvent(event);
  return event.defaultPrevented;
}"""


@pytest.fixture(scope="module")
def editor(
    chromium: str, edit_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of a checkpoint that takes images."""
    server = ServerProcess(
        tmp_path_factory.mktemp("editor"),
        edit_checkpoint,
        HYIMAGE_API_KEYS=KEY,
        HYIMAGE_WORKER__IMAGE_INPUTS="true",
        HYIMAGE_WORKER__VAE_DTYPE="bfloat16",
        OMP_NUM_THREADS="1",
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def editing(browser: Browser, editor: ServerProcess) -> Iterator[Page]:
    context = browser.new_context(base_url=editor.url, viewport=DESKTOP, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    context.add_init_script(WITH_KEY)
    page = context.new_page()
    faults = watch_faults(page)
    open_page(page)
    yield page
    context.close()
    assert faults == []


def give(page: Page, kind: str, path: Path, mime: str = "image/png") -> bool:
    content = base64.b64encode(path.read_bytes()).decode()
    is_taken: bool = page.evaluate(GIVE, [kind, path.name, mime, content])
    return is_taken


def names(page: Page) -> list[str]:
    """Return the images that are shown, in their order."""
    images = page.locator(".inputs img").all()
    return [(image.get_attribute("alt") or "").rpartition(": ")[2] for image in images]


def test_images_are_chosen_dropped_pasted_ordered_and_removed_by_keyboard(editing: Page) -> None:
    with editing.expect_file_chooser() as chooser:
        editing.get_by_role("button", name="Add images").press("Enter")
    chooser.value.set_files([GREY])
    expect(editing.locator(".inputs img")).to_have_count(1)
    assert give(editing, "drop", ALPHA)
    expect(editing.locator(".inputs img")).to_have_count(2)
    assert give(editing, "paste", WIDE)
    expect(editing.locator(".inputs img")).to_have_count(3)
    assert names(editing) == [GREY.name, ALPHA.name, WIDE.name]
    expect(editing.get_by_role("button", name="Add images")).to_be_disabled()
    give(editing, "drop", INPUTS / "edit_in_tall.png")
    expect(editing.locator("#inputs-fault")).to_contain_text("At most 3 images")
    assert (serious_faults(editing), overflow_px(editing)) == ([], 0)
    later = editing.get_by_role("button", name=f"Later: {GREY.name}")
    later.press("Enter")
    expect(later).to_be_focused()
    editing.keyboard.press("Enter")
    assert names(editing) == [ALPHA.name, WIDE.name, GREY.name]
    expect(editing.get_by_role("button", name=f"Earlier: {GREY.name}")).to_be_focused()
    editing.get_by_role("button", name=f"Remove: {WIDE.name}").press("Enter")
    assert names(editing) == [ALPHA.name, GREY.name]
    give(editing, "paste", INPUTS / "manifest.json", "application/json")
    expect(editing.locator("#inputs-fault")).to_contain_text("manifest.json is not PNG")


def test_an_edit_is_sent_survives_a_reload_and_is_the_same_from_code(
    editing: Page, tmp_path: Path
) -> None:
    for path in (ALPHA, GREY):
        give(editing, "drop", path)
    expect(editing.locator(".inputs img")).to_have_count(2)
    editing.get_by_text("Scheduler, step caches, format").click()
    editing.get_by_label("PNG", exact=True).check()
    with editing.expect_request("**/v1") as sent:
        draw(editing, "make it night", steps=8, seed=7, shape=SHAPE)
    (task,) = json.loads(sent.value.post_data or "")
    uris = [
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path in (ALPHA, GREY)
    ]
    assert task["referenceImages"] == uris
    expect(editing.locator(".hud-text")).to_contain_text("Step ", timeout=DRAWN_MS)
    editing.reload()
    finished(editing)
    expect(fact(editing, "Input images")).to_have_text("2")
    editing.get_by_role("button", name="Use settings").click()
    assert names(editing) == ["image 1", "image 2"]
    assert editing.locator(".inputs img").first.get_attribute("src") == uris[0]
    shown = bytes(editing.evaluate(BYTES))
    editing.get_by_role("button", name="Copy as code").click()
    shutil.copy(ALPHA, tmp_path / "input-1.png")
    shutil.copy(GREY, tmp_path / "input-2.png")
    for name in ("curl", "Python", "OpenAI SDK"):
        assert run_snippet(editing, name, tmp_path) == shown, name


def run_snippet(page: Page, name: str, folder: Path) -> bytes:
    """Return the image that the code in one of the dialog's tabs makes."""
    page.get_by_role("tab", name=name, exact=True).click()
    expect(page.locator("#code-note")).to_contain_text("input-1.png, input-2.png")
    code = page.locator("#code-text").inner_text()
    assert len(code) < 2000
    run = subprocess.run(
        [*(["bash"] if name == "curl" else [sys.executable]), "-c", code],
        env={**os.environ, "HYIMAGE_API_KEY": KEY},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    url = json.loads(run.stdout)["data"][0]["imageURL"] if name == "curl" else run.stdout
    with urllib.request.urlopen(url.strip(), timeout=30) as response:
        content: bytes = response.read()
    return content


def test_an_aligned_edit_is_generated_again_at_the_task_s_own_size(editing: Page) -> None:
    give(editing, "drop", ALPHA)
    editing.get_by_label("Keep the shape of the input image").check()
    draw(editing, "make it night", steps=1, seed=7, shape="304x208")
    finished(editing)
    expect(fact(editing, "Size")).to_have_text(re.compile("317 . 207"))
    with editing.expect_request("**/v1") as sent:
        editing.get_by_role("button", name="Another seed").click()
    (task,) = json.loads(sent.value.post_data or "")
    assert (task["width"], task["height"], task["hunyuan"]) == (304, 208, {"align": True})


def test_where_no_images_are_taken_a_sentence_says_so(page: Page) -> None:
    expect(page.get_by_role("button", name="Add images")).to_be_disabled()
    expect(page.locator("#inputs-note")).to_contain_text("takes no images")
    assert give(page, "drop", GREY)  # or the browser would leave the page for the file
    expect(page.locator(".inputs img")).to_have_count(0)
