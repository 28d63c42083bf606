"""Two settings side by side with one seed, and an image as code."""

import json
import os
import re
import subprocess
import sys
import urllib.request

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import DRAWN_MS, KEY, draw, finished
from tests.system.conftest import ServerProcess

pytestmark = pytest.mark.slow

# The page's own policy lets no script fetch a blob, so the bytes come from the gallery.
BYTES = """async () => {
  const [image] = await new Promise((resolve) => {
    indexedDB.open("hyimage").onsuccess = (event) => {
      const images = event.target.result.transaction("images").objectStore("images");
      images.getAll().onsuccess = (all) => resolve(all.target.result);
    };
  });
  return Array.from(new Uint8Array(await image.blob.arrayBuffer()));
}"""


def test_two_settings_of_one_seed_are_compared_with_a_slider_and_by_keys(page: Page) -> None:
    draw(page, "a red car to the left of a panda in the snow", steps=4, seed=5)
    finished(page)
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_label("Seed", exact=True)).to_be_disabled()
    expect(page.get_by_label("Prompt", exact=True)).to_be_disabled()
    page.get_by_role("textbox", name="Steps").fill("2")
    page.get_by_role("button", name="Generate and compare").click()
    edge = page.get_by_role("slider", name=re.compile("Edge between"))
    expect(edge).to_be_focused(timeout=DRAWN_MS)
    rows = page.locator(".differences tbody tr")
    expect(rows.filter(has=page.locator("th", has_text="Steps")).locator("td")).to_have_text(
        ["4", "2"]
    )
    expect(rows.filter(has_text="Seed")).to_have_count(0)
    before = page.locator(".compare .edge").bounding_box()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(edge).to_have_value("55")
    after = page.locator(".compare .edge").bounding_box()
    assert before is not None
    assert after is not None
    assert after["x"] > before["x"]
    page.get_by_role("button", name="Close the comparison").click()
    expect(page.get_by_label("Seed", exact=True)).to_be_enabled()
    finished(page)


def test_an_image_of_the_same_seed_in_the_gallery_can_be_compared(page: Page) -> None:
    for steps in (1, 2):
        draw(page, "a rocket at night", steps=steps, seed=9)
        expect(page.locator(".facts")).to_contain_text(f"Steps{steps}", timeout=DRAWN_MS)
    page.get_by_role("button", name="Compare", exact=True).click()
    comparable = page.locator(".tile.comparable")
    expect(comparable).to_have_count(1)
    comparable.click()
    expect(page.locator(".differences")).to_contain_text("Steps")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()


# A quote of each kind, and what a shell or a template would expand.
PROMPT = 'a cat\'s "red" balloon in the snow, $HOME `id` ${1} \\ 100%'


def test_each_snippet_generates_the_same_image_and_holds_no_key(
    page: Page, server: ServerProcess
) -> None:
    draw(page, PROMPT, steps=2, seed=11)
    finished(page)
    shown = bytes(page.evaluate(BYTES))
    page.get_by_role("button", name="Copy as code").click()
    environment = {**os.environ, "HYIMAGE_API_KEY": KEY}
    commands = {
        "curl": ["bash", "-c"],
        "Python": [sys.executable, "-c"],
        "OpenAI SDK": [sys.executable, "-c"],
    }
    for name, command in commands.items():
        page.get_by_role("tab", name=name, exact=True).click()
        code = page.locator("#code-text").inner_text()
        assert KEY not in code
        run = subprocess.run(
            [*command, code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        url = json.loads(run.stdout)["data"][0]["imageURL"] if name == "curl" else run.stdout
        with urllib.request.urlopen(url.strip(), timeout=30) as response:
            assert response.read() == shown, name
    page.get_by_role("tab", name="JavaScript", exact=True).click()
    code = page.locator("#code-text").inner_text()
    assert KEY not in code
    given = re.search(r"imageInference\((\{.*?\n\})\)", code, flags=re.S)
    assert given is not None
    task = json.loads(given[1])
    assert (task["positivePrompt"], task["seed"], task["steps"]) == (PROMPT, 11, 2)
