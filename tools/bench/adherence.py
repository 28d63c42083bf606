"""Adherence of the tiny checkpoint to its captions: shares of images that show what was asked for.

Every scene holds a combination of object, colour and background that training left out. The
images come from the server's own pipeline; `training/scorer.py` compares them with the artwork.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path

from model.template import Prompt
from pipeline.load import Pipeline
from training.captions import TALL_PHRASES, WIDE_PHRASES, write_caption
from training.samples import list_held_captions
from training.scenes import SQUARE, Scene, Split, grid_of, make_scene
from training.scorer import find_kinds, score_image, summarize
from training.scoring import Pixels, SampleOptions, ScoredImage, generate_and_score, generate_scene
from training.sheets import save_sheet

# Colour words that name what the negative prompt should push away.
NEGATED_COLOUR = "red"
NUM_SHEET_IMAGES = 24
LONG_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Adherence:
    """Shares of images that are right, for one setting; `seconds` is the mean of an image.

    `rows` is the share of all rows that the layers ran, `guidance_plan` the name of where and how
    the images were guided.
    """

    guidance: float
    guidance_plan: str
    steps: int
    count: int
    background: float
    position: float
    colour: float
    kind: float
    all: float
    rows: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NegatedColour:
    """Shares of images with a red object, without and with "red" as the negative prompt."""

    without_negative: float
    with_negative: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RightShapes:
    """Shares of captions for which `auto` picks a size of the shape that they ask for."""

    wide: float
    tall: float
    square: float
    all: float


def measure_adherence(
    pipeline: Pipeline, art: Path, options: SampleOptions, count: int, sheet: Path | None = None
) -> Adherence:
    """Generate `count` held-out captions and score them; the first ones also go on a sheet."""
    captioned = list_held_captions(count)
    scored: list[ScoredImage] = []
    for image in generate_and_score(pipeline, captioned, options, art):
        # The pixels of hundreds of images would take gigabytes.
        is_on_sheet = len(scored) < NUM_SHEET_IMAGES
        scored.append(image if is_on_sheet else replace(image, pixels_yx3=image.pixels_yx3[:0]))
    if sheet is not None:
        _save_sheet(sheet, [(image.pixels_yx3, image.caption) for image in scored])
    return Adherence(
        guidance=options.guidance,
        guidance_plan=options.guidance_plan.name,
        rows=sum(image.rows for image in scored) / count,
        steps=options.num_steps,
        count=count,
        seconds=sum(image.seconds for image in scored) / count,
        **summarize([image.score for image in scored]),
    )


def measure_negated_colour(
    pipeline: Pipeline, art: Path, options: SampleOptions, count: int
) -> NegatedColour:
    """Return how often an object of free colour comes out red, without and with "red" negated."""
    captioned = list(islice(_free_colour_scenes(), count))

    def share_of_red(tried: SampleOptions) -> float:
        hits = 0
        for seed, (scene, caption) in enumerate(captioned):
            pixels_yx3 = generate_scene(pipeline, scene, caption, tried, seed)
            red = replace(scene, things=(replace(scene.things[0], colour=NEGATED_COLOUR),))
            hits += score_image(pixels_yx3, red, art).colour
        return hits / count

    return NegatedColour(
        without_negative=share_of_red(options),
        with_negative=share_of_red(replace(options, negative_prompt=NEGATED_COLOUR)),
    )


def measure_right_shapes(pipeline: Pipeline, count: int) -> RightShapes:
    """Return how often `auto` picks a wide, tall or square size for captions that ask for one."""
    rng = random.Random(99)
    right: dict[str, list[bool]] = {"wide": [], "tall": [], "square": []}
    for index in range(count):
        wanted = ("wide", "tall", "square")[index % 3]
        scene = make_scene(rng, *grid_of(SQUARE), split="held")
        caption = write_caption(scene, rng, is_complete=True).text
        if wanted != "square":
            caption = f"{rng.choice(WIDE_PHRASES if wanted == 'wide' else TALL_PHRASES)} {caption}"
        chosen = pipeline.sizes[int(pipeline.ratio_logits(Prompt(text=caption)).argmax())]
        shape = (chosen.width_px > chosen.height_px) - (chosen.width_px < chosen.height_px)
        right[wanted].append(shape == {"wide": 1, "tall": -1, "square": 0}[wanted])
    shares = {name: sum(hits) / max(1, len(hits)) for name, hits in right.items()}
    return RightShapes(**shares, all=sum(map(sum, right.values())) / count)


def measure_found_in_prose(
    pipeline: Pipeline, art: Path, options: SampleOptions, count: int, sheet: Path | None = None
) -> float:
    """Return how often one known thing, named in the middle of 2,000 characters, is generated.

    The prose is one that training never read. The thing counts wherever it stands.
    """
    rng = random.Random(11)
    prose = resources.files("tools.bench").joinpath("prose.txt").read_text("utf-8").splitlines()
    hits = 0
    shown: list[tuple[Pixels, str]] = []
    for seed in range(count):
        scene = next(s for s in _scenes(rng, "held") if len(s.things) == 1)
        caption = write_caption(scene, rng, is_complete=True).text
        prompt = _hide(caption, prose, rng)
        pixels_yx3 = generate_scene(pipeline, scene, prompt, options, seed)
        hits += scene.things[0].kind in find_kinds(pixels_yx3, art)
        if len(shown) < NUM_SHEET_IMAGES:
            shown.append((pixels_yx3, f"...{caption}..."))
    if sheet is not None:
        _save_sheet(sheet, shown)
    return hits / count


def _save_sheet(path: Path, images: Sequence[tuple[Pixels, str]]) -> None:
    first = images[:NUM_SHEET_IMAGES]
    save_sheet(path, [pixels_yx3 for pixels_yx3, _ in first], [caption for _, caption in first])


def _hide(caption: str, prose: Sequence[str], rng: random.Random) -> str:
    """Return prose of LONG_CHARACTERS with the caption as a sentence in the middle of it."""
    sentences = rng.sample(list(prose), len(prose))
    before = after = ""
    while len(before) < (LONG_CHARACTERS - len(caption)) // 2:
        before += sentences.pop() + " "
    while len(before) + len(caption) + len(after) < LONG_CHARACTERS:
        after += " " + sentences.pop()
    return f"{before}{caption[0].upper()}{caption[1:].rstrip('.')}.{after}"


def _scenes(rng: random.Random, split: Split) -> Iterator[Scene]:
    """Yield square scenes without end."""
    while True:
        yield make_scene(rng, *grid_of(SQUARE), split=split)


def _free_colour_scenes() -> Iterator[tuple[Scene, str]]:
    """Yield square scenes of one object that comes in colours, with captions that name none."""
    rng = random.Random(7)
    for scene in _scenes(rng, "any"):
        if scene.layout == "center" and scene.things[0].colour is not None:
            free = replace(scene, things=(replace(scene.things[0], colour=None),))
            yield scene, write_caption(free, rng, is_complete=True).text
