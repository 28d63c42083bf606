"""Example prompts: all from the checkpoint's vocabulary, and each drawn as it says.

A checkpoint that draws one of them wrong needs others: `training/vocabulary.py` has the list, and
the failed test shows what is wrong in which image.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cli.generate import generate as generate_command
from pipeline.load import Pipeline, load_pipeline
from pipeline.settings import PipelineSettings
from pipeline.vocabulary import read_vocabulary
from server.app import create_app
from server.runware.guidance_options import build_guidance_plan
from server.runware.schemas import ImageInference
from server.settings import load_settings
from tests.contract.conftest import FakeEngine, change
from tests.page.prompts import names_places, read_scene
from training.art import fetch_art
from training.scorer import score_image
from training.scoring import SampleOptions, generate_scene

ROOT = Path(__file__).parents[2]
VOCABULARY = read_vocabulary(ROOT / "checkpoints" / "tiny")
EXAMPLES = () if VOCABULARY is None else VOCABULARY.examples
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEFAULTS = {name: field.default for name, field in ImageInference.model_fields.items()}
# What `make serve` serves.
SERVED = load_settings(ROOT / "configs" / "tiny.toml")
SEED = 3


def prompts_in_pages() -> Iterator[str]:
    """Yield the prompts of the commands and requests in README and docs."""
    for page in PAGES:
        text = page.read_text("utf-8")
        yield from re.findall(r'hyimage generate "([^"]+)"', text)
        yield from re.findall(r'"?(?:positivePrompt|prompt)"?\s*[:=]\s*"([^"]+)"', text)


def prompts_in(value: Any) -> Iterator[str]:
    """Yield the prompts of the examples in an OpenAPI document."""
    if isinstance(value, list):
        for item in value:
            yield from prompts_in(item)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name in ("positivePrompt", "prompt"):
                given = inner.get("examples", []) if isinstance(inner, dict) else [inner]
                yield from (prompt for prompt in given if isinstance(prompt, str))
            yield from prompts_in(inner)


def test_the_examples_of_readme_docs_openapi_and_command_are_the_checkpoints(
    tmp_path: Path,
) -> None:
    settings = change(
        load_settings(None),
        images__store=str(tmp_path / "images"),
        tasks__database_url=f"sqlite:///{tmp_path}/tasks.db",
    )
    found = {
        "pages": list(prompts_in_pages()),
        "openapi": list(prompts_in(create_app(settings, FakeEngine()).openapi())),
        "command": re.findall(r'hyimage generate "([^"]+)"', generate_command.__doc__ or ""),
    }
    assert all(found.values()), "each of them has an example"
    unknown = {
        where: [prompt for prompt in prompts if prompt.lower() not in EXAMPLES]
        for where, prompts in found.items()
    }
    assert unknown == {"pages": [], "openapi": [], "command": []}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(PipelineSettings(checkpoint=str(ROOT / "checkpoints" / "tiny")))


@pytest.fixture(scope="module")
def true_art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artwork that the checkpoint was trained on, from the npm registry."""
    folder = tmp_path_factory.mktemp("art")
    try:
        fetch_art(folder)
    except RuntimeError as e:
        pytest.skip(f"no artwork to compare with: {e}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("prompt", EXAMPLES)
def test_an_example_shows_what_it_says_at_the_defaults_of_the_api(
    pipeline: Pipeline, true_art: Path, prompt: str
) -> None:
    options = SampleOptions(
        num_steps=DEFAULTS["steps"],
        guidance=DEFAULTS["CFGScale"],
        guidance_plan=build_guidance_plan(None, SERVED.api.default_guidance),
    )
    scene = read_scene(prompt)
    score = asdict(
        score_image(generate_scene(pipeline, scene, prompt, options, SEED), scene, true_art)
    )
    if not names_places(prompt):
        del score["position"]
    assert [part for part, is_right in score.items() if not is_right] == []
