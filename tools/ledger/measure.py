"""Measuring one cell of the ledger, in a process of its own, whose peak memory is the cell's."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.errors import ModelError
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline
from pipeline.ranks import Advance, Begin, Drop, Followers, end_with_parent, started_mesh
from pipeline.request import Event, ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from server.process import configure_process
from tools.ledger.book import Figures
from tools.ledger.cells import CONVERGED, REFERENCE, Cell
from tools.similarity import MAX_PSNR, Pixels, psnr, ssim
from training.samples import list_held_captions
from training.scorer import score_image


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a cell's process is to do: settings, one request an image, and where images are kept.

    `art` is the artwork that scores the requests' images, None if nothing does.
    """

    cell: Cell
    settings: PipelineSettings
    requests: tuple[ImageRequest, ...]
    images: Path
    art: Path | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """So many images of the cell are done."""

    done: int


@dataclass(frozen=True, slots=True)
class _Timed:
    done: ImageDone
    seconds: float


def measure_in_process(pipe: Connection, task: Task) -> None:
    """Measure a cell and send its figures; a cell that cannot run sends the fault instead."""
    end_with_parent()
    configure_process()
    pipe.send(measure_or_fault(task, lambda done: pipe.send(Progress(done))))


def measure_or_fault(task: Task, report: Callable[[int], None]) -> Figures:
    """Return the figures of a cell, or why there are none."""
    try:
        return measure_cell(task, report)
    except ModelError as e:
        return Figures(cell=task.cell.name, axis=task.cell.axis, fault=str(e))


def measure_cell(task: Task, report: Callable[[int], None]) -> Figures:
    """Generate the images of a cell and compare them.

    Raises:
        ModelError: the checkpoint cannot be used like this.
    """
    with started_mesh(task.settings) as (mesh, followers):
        pipeline = load_pipeline(task.settings, mesh=mesh)
        if followers is not None:
            followers.wait_until_loaded()
        timed = []
        for number, request in enumerate(task.requests, start=1):
            timed.append(_generate(pipeline, request, followers))
            report(number)
        peak = peak_bytes(pipeline)
    pixels = [each.done.pixels_yx3 for each in timed]
    if task.cell.axis in (REFERENCE, CONVERGED):
        save_images(task.images, task.cell.axis, pixels)
    return _figures(task, timed, pixels, peak)


def _generate(pipeline: Pipeline, request: ImageRequest, followers: Followers | None) -> _Timed:
    """Generate one image, on every rank of a mesh."""
    started = time.perf_counter()
    events: Iterator[Event] = generate(pipeline, request)
    run_id = str(request.seeds[0])
    if followers is not None:
        followers.send(Begin(run_id, request))
    while True:
        if followers is not None:
            followers.send(Advance(run_id))
        event = next(events)
        if isinstance(event, ImageDone):
            break
    if followers is not None:
        followers.send(Drop(run_id))
    return _Timed(event, time.perf_counter() - started)


def _figures(
    task: Task, timed: Sequence[_Timed], pixels: Sequence[Pixels], peak: int | None
) -> Figures:
    references = load_images(task.images, REFERENCE, len(pixels))
    converged = load_images(task.images, CONVERGED, len(pixels))
    seconds = [each.seconds for each in timed]
    diagnostics = [each.done.diagnostics for each in timed]
    near, far = _ratios(pixels, references), _ratios(pixels, converged)
    return Figures(
        cell=task.cell.name,
        axis=task.cell.axis,
        psnr=statistics.median(near) if near else None,
        least_psnr=min(near) if near else None,
        ssim=_median_ssim(pixels, references),
        psnr_converged=statistics.median(far) if far else None,
        ssim_converged=_median_ssim(pixels, converged),
        adherence=_adherence(task, pixels),
        evaluations=statistics.mean(each.num_evaluations for each in diagnostics),
        rows=statistics.mean(each.num_rows for each in diagnostics),
        seconds=statistics.median(seconds),
        seconds_spread=_spread(seconds),
        peak_bytes=peak,
        note=" ".join(dict.fromkeys(w for each in diagnostics for w in each.warnings)),
    )


def _ratios(ours: Sequence[Pixels], truths: Sequence[Pixels]) -> list[float]:
    return [min(MAX_PSNR, psnr(a, b)) for a, b in zip(ours, truths, strict=True)] if truths else []


def _median_ssim(ours: Sequence[Pixels], truths: Sequence[Pixels]) -> float | None:
    if not truths:
        return None
    return statistics.median(ssim(a, b) for a, b in zip(ours, truths, strict=True))


def _adherence(task: Task, pixels: Sequence[Pixels]) -> float | None:
    if task.art is None:
        return None
    scenes = [scene for scene, _ in list_held_captions(len(pixels))]
    right = [
        score_image(image, scene, task.art).all for image, scene in zip(pixels, scenes, strict=True)
    ]
    return sum(right) / len(right)


def _spread(seconds: Sequence[float]) -> float:
    """Return half the distance of the quartiles, as a share of the median."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle


def save_images(folder: Path, name: str, images: Sequence[Pixels]) -> None:
    """Write images without loss, for the cells that are compared with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels_yx3 in enumerate(images):
        partial = folder / f".{name}-{number}.partial"
        Image.fromarray(pixels_yx3).save(partial, format="PNG")
        partial.replace(folder / f"{name}-{number}.png")


def load_images(folder: Path, name: str, count: int) -> list[Pixels]:
    """Return saved images; none at all where they are not yet measured."""
    paths = [folder / f"{name}-{number}.png" for number in range(count)]
    if not all(path.is_file() for path in paths):
        return []
    return [np.asarray(Image.open(path)) for path in paths]


def peak_bytes(pipeline: Pipeline) -> int | None:
    """Return the most bytes held: of CUDA devices what torch allocated, else of the processes."""
    cuda = [device for device in pipeline.transformer.devices if device.type == "cuda"]
    if cuda:
        return sum(torch.cuda.max_memory_allocated(device) for device in cuda)
    pids: list[str | int] = ["self", *(p.pid or 0 for p in multiprocessing.active_children())]
    peaks = [_peak_resident(pid) for pid in pids]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None


def _peak_resident(pid: str | int) -> int | None:
    """Return VmHWM of a process; None where that is not known, as outside Linux."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else None
