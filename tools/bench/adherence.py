"""Does the tiny checkpoint draw what it is told? Held-out captions, scored against the artwork.

Every scene holds a combination of object, colour and background that training never showed. The
images go through the server's own pipeline; `training/scorer.py` looks at them.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.template import Prompt
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.request import ImageDone, ImageRequest
from training.captions import TALL_PHRASES, WIDE_PHRASES, write_caption
from training.samples import list_held_captions
from training.scenes import SQUARE, TOKEN_PX, Scene, grid_of, make_scene
from training.scorer import Score, find_kinds, score_image, summarize
from training.sheets import save_sheet

Pixels = npt.NDArray[np.uint8]

# Colour words that name what the negative prompt should push away.
NEGATED_COLOUR = "red"
NUM_SHEET_IMAGES = 24
LONG_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Shares of images that are right, for one setting."""

    guidance: float
    steps: int
    count: int
    background: float
    position: float
    colour: float
    kind: float
    all: float
    seconds: float


def score_setting(
    pipeline: Pipeline,
    art: Path,
    guidance: float,
    steps: int,
    count: int,
    sheet: Path | None = None,
) -> Row:
    """Generate `count` held-out captions and score them; the first ones also go on a sheet."""
    scores: list[Score] = []
    images: list[Pixels] = []
    captions: list[str] = []
    started = time.perf_counter()
    spent_scoring_s = 0.0
    for seed, (scene, caption) in enumerate(list_held_captions(count)):
        image = draw_scene(pipeline, scene, caption, guidance, steps, seed)
        scoring = time.perf_counter()
        scores.append(score_image(image, scene, art))
        spent_scoring_s += time.perf_counter() - scoring
        if len(images) < NUM_SHEET_IMAGES:
            images.append(image)
            captions.append(caption)
    seconds = (time.perf_counter() - started - spent_scoring_s) / count
    if sheet is not None:
        save_sheet(sheet, images, captions)
    return Row(guidance=guidance, steps=steps, count=count, seconds=seconds, **summarize(scores))


def share_of_negated_colour(
    pipeline: Pipeline, art: Path, guidance: float, steps: int, count: int
) -> dict[str, float]:
    """Return how often an object of free colour comes out red, without and with "red" negated."""
    shares = {}
    scenes = list(_free_colour_scenes(count))
    for name, negative in (("without", None), ("with", NEGATED_COLOUR)):
        hits = 0
        for seed, (scene, caption) in enumerate(scenes):
            image = draw_scene(pipeline, scene, caption, guidance, steps, seed, negative)
            red = replace(scene, things=(replace(scene.things[0], colour=NEGATED_COLOUR),))
            hits += score_image(image, red, art).colour
        shares[name] = hits / count
    return shares


def share_of_right_shapes(pipeline: Pipeline, count: int) -> dict[str, float]:
    """Return how often `auto` picks a wide, tall or square size for captions that ask for one."""
    rng = random.Random(99)
    right: dict[str, list[bool]] = {"wide": [], "tall": [], "square": []}
    for index in range(count):
        wanted = ("wide", "tall", "square")[index % 3]
        scene = make_scene(rng, *grid_of(SQUARE), split="held")
        caption = write_caption(scene, rng, is_complete=True).text
        if wanted != "square":
            caption = f"{rng.choice(WIDE_PHRASES if wanted == 'wide' else TALL_PHRASES)} {caption}"
        chosen = pipeline.sizes[choose_ratio(pipeline, caption)]
        shape = (chosen.width_px > chosen.height_px) - (chosen.width_px < chosen.height_px)
        right[wanted].append(shape == {"wide": 1, "tall": -1, "square": 0}[wanted])
    shares = {name: sum(hits) / max(1, len(hits)) for name, hits in right.items()}
    return {**shares, "all": sum(map(sum, right.values())) / count}


def share_found_in_prose(
    pipeline: Pipeline,
    art: Path,
    guidance: float,
    steps: int,
    count: int,
    sheet: Path | None = None,
) -> float:
    """Return how often one known thing, named in the middle of 2,000 characters, is generated.

    The prose is one that training never read. The thing counts wherever it stands.
    """
    rng = random.Random(11)
    prose = resources.files("tools.bench").joinpath("prose.txt").read_text("utf-8").splitlines()
    hits, images, captions = 0, [], []
    for seed in range(count):
        while True:
            scene = make_scene(rng, *grid_of(SQUARE), split="held")
            if len(scene.things) == 1:
                break
        caption = write_caption(scene, rng, is_complete=True).text
        image = draw_scene(pipeline, scene, _hide(caption, prose, rng), guidance, steps, seed)
        hits += scene.things[0].kind in find_kinds(image, art)
        images.append(image)
        captions.append(f"...{caption}...")
    if sheet is not None:
        save_sheet(sheet, images[:NUM_SHEET_IMAGES], captions[:NUM_SHEET_IMAGES])
    return hits / count


def _hide(caption: str, prose: Sequence[str], rng: random.Random) -> str:
    """Return prose of LONG_CHARACTERS with the caption as a sentence in the middle of it."""
    sentences = rng.sample(list(prose), len(prose))
    before = after = ""
    while len(before) < (LONG_CHARACTERS - len(caption)) // 2:
        before += sentences.pop() + " "
    while len(before) + len(caption) + len(after) < LONG_CHARACTERS:
        after += " " + sentences.pop()
    return f"{before}{caption[0].upper()}{caption[1:].rstrip('.')}.{after}"


def choose_ratio(pipeline: Pipeline, caption: str) -> int:
    """Return the ratio index that the model finds most likely."""
    return int(pipeline.ratio_logits(Prompt(text=caption)).argmax())


def draw_scene(
    pipeline: Pipeline,
    scene: Scene,
    caption: str,
    guidance: float,
    steps: int,
    seed: int,
    negative: str | None = None,
) -> Pixels:
    """Return the image that the server would send. Shapes: -> rgb_yx3."""
    request = ImageRequest(
        prompt=caption,
        negative_prompt=negative,
        width_px=scene.columns * TOKEN_PX,
        height_px=scene.rows * TOKEN_PX,
        num_steps=steps,
        guidance=guidance,
        seeds=(seed,),
    )
    return next(e.pixels_yx3 for e in generate(pipeline, request) if isinstance(e, ImageDone))


def _free_colour_scenes(count: int) -> Iterator[tuple[Scene, str]]:
    """Yield square scenes of one object that comes in colours, with captions that name none."""
    rng = random.Random(7)
    for _ in range(count):
        while True:
            scene = make_scene(rng, *grid_of(SQUARE), split="any")
            if scene.layout == "center" and scene.things[0].colour is not None:
                break
        free = replace(scene, things=(replace(scene.things[0], colour=None),))
        yield scene, write_caption(free, rng, is_complete=True).text


def write_json(path: Path, rows: Sequence[Row], extra: dict[str, object]) -> None:
    """Write the first row's shares at the top, all rows below, and whatever else was measured."""
    content = {**asdict(rows[0]), "rows": [asdict(row) for row in rows], **extra}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
