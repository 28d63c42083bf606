"""Running the ledger: cell after cell, each in its own process, resumed where it was left."""

import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from model.config_file import load_config
from model.loading.fingerprint import fingerprint
from model.resolution import list_offered_sizes
from pipeline.settings import PipelineSettings
from server.runware.image_request import to_image_request
from server.runware.validation import new_image_inference
from server.settings import Settings
from tools.bench.prompts import read_prompts
from tools.calibrate_guidance import find_art
from tools.ledger.book import FILE_NAME, Figures, Ledger, Setup, resume_ledger, save_ledger
from tools.ledger.cells import CONVERGED, REFERENCE, Cell, list_cells
from tools.ledger.measure import Progress, Task, load_images, measure_in_process
from tools.ledger.page import build_page
from tools.modes import parse_mode
from tools.progress import Report, ignore
from training.samples import list_held_captions
from training.scenes import TOKEN_PX

Measure = Callable[[Task, Callable[[int], None]], Figures]

PAGE_NAME, IMAGES_NAME = "ledger.html", "images"


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerOptions:
    """How large a ledger is, and whose prompts it generates: the checkpoint's own, or a file's."""

    num_prompts: int = 8
    steps: int = 20
    guidance: float = 7.0
    prompts: Path | None = None
    size_px: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: the setup, the cells, and the artwork that scores them, if any does."""

    setup: Setup
    cells: tuple[Cell, ...]
    art: Path | None


def plan_ledger(settings: Settings, options: LedgerOptions, art: Path) -> Plan:
    """Return what a ledger of these options measures.

    The tiny checkpoint gets captions that its training left out, and their images are scored;
    others get the product's list of prompts, at their square size.

    Raises:
        CommandError: a file cannot be read, or artwork cannot be fetched.
    """
    folder = Path(settings.worker.checkpoint)
    scoring = None
    if options.prompts is None and options.size_px is None:
        scoring = find_art(folder, art)
    if scoring is not None:
        captioned = list_held_captions(options.num_prompts)
        prompts = [caption for _, caption in captioned]
        sizes = [(scene.columns * TOKEN_PX, scene.rows * TOKEN_PX) for scene, _ in captioned]
    else:
        prompts = read_prompts(options.prompts, options.num_prompts)
        sizes = [options.size_px or _square(folder)] * len(prompts)
    setup = Setup(
        weights=fingerprint(folder),
        prompts=tuple(prompts),
        sizes=tuple(sizes),
        steps=options.steps,
        guidance=options.guidance,
        machine=f"{platform.machine()}, {os.cpu_count()} processors, {settings.worker.device}",
    )
    return Plan(setup, tuple(list_cells(options.steps)), scoring)


def run_ledger(
    folder: Path,
    settings: Settings,
    plan: Plan,
    report: Report = ignore,
    after_cell: Callable[[Figures], None] = lambda figures: None,
    measure: Measure | None = None,
) -> Ledger:
    """Measure the cells that the folder's ledger lacks; write ledger.json and .html after each.

    `measure` takes the place of `run_cell`.

    Raises:
        CommandError: the folder holds a ledger of another setup.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, images = folder / FILE_NAME, folder / IMAGES_NAME
    ledger = resume_ledger(path, plan.setup)
    done = ledger.done - _without_images(plan, images)
    ledger = replace(ledger, figures=tuple(f for f in ledger.figures if f.cell in done))
    total = len(plan.cells) * len(plan.setup.prompts)
    for number, cell in enumerate(plan.cells):
        first = number * len(plan.setup.prompts)
        report("images", first, total)
        if cell.name in done:
            continue
        task = build_task(cell, settings, plan, images)
        figures = (measure or run_cell)(task, partial(_report_image, report, first, total))
        ledger = ledger.with_figures(figures)
        save_ledger(path, ledger)
        (folder / PAGE_NAME).write_text(build_page(ledger), encoding="utf-8")
        after_cell(figures)
    report("images", total, total)
    return ledger


def _report_image(report: Report, first: int, total: int, count: int) -> None:
    report("images", first + count, total)


def run_cell(
    task: Task,
    report: Callable[[int], None],
    target: Callable[[Connection, Task], None] = measure_in_process,
) -> Figures:
    """Return the figures of one cell, measured in a new process; its death is the fault."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, task))
    process.start()
    theirs.close()
    try:
        while True:
            message = ours.recv()
            if isinstance(message, Figures):
                process.join()  # its ranks end with it
                return message
            assert isinstance(message, Progress)
            report(message.done)
    except EOFError:
        process.join()
        fault = f"its process ended with {process.exitcode}; -9 usually means that memory ran out"
        return Figures(cell=task.cell.name, axis=task.cell.axis, fault=fault)
    finally:
        ours.close()
        if process.is_alive():
            process.kill()
        process.join()


def build_task(cell: Cell, settings: Settings, plan: Plan, images: Path) -> Task:
    """Return what the process of a cell does, with requests as the API makes them."""
    worker = _worker_settings(cell, settings.worker)
    requests = []
    pairs = zip(plan.setup.prompts, plan.setup.sizes, strict=True)
    for seed, (prompt, size_px) in enumerate(pairs):
        parameters = new_image_inference(
            settings.api.model,
            {
                "positivePrompt": prompt,
                "steps": cell.steps,
                "CFGScale": plan.setup.guidance,
                "scheduler": cell.scheduler,
                "acceleration": cell.acceleration,
                "hunyuan": {"guidance": cell.guidance},
            },
        )
        requests.append(to_image_request(parameters, size_px, (seed,), settings.cache))
    return Task(cell=cell, settings=worker, requests=tuple(requests), images=images, art=plan.art)


def _worker_settings(cell: Cell, worker: PipelineSettings) -> PipelineSettings:
    """Return the settings of a cell; processes of a mesh share the threads."""
    mode = parse_mode(cell.mode, worker.device)
    ranks = mode.get("cfg_parallel_size", 1) * mode.get("tensor_parallel_size", 1)
    threads = worker.num_threads or (max(1, (os.cpu_count() or 1) // ranks) if ranks > 1 else 0)
    return PipelineSettings.model_validate(
        {
            **worker.model_dump(),
            **mode,
            "dtype": cell.dtype,
            "vae_dtype": cell.dtype,
            "quantization": cell.quantization,
            "num_threads": threads,
        }
    )


def _without_images(plan: Plan, images: Path) -> set[str]:
    """Return the references whose images are gone: they are generated again."""
    count = len(plan.setup.prompts)
    return {
        cell.name
        for cell in plan.cells
        if cell.axis in (REFERENCE, CONVERGED) and not load_images(images, cell.axis, count)
    }


def _square(folder: Path) -> tuple[int, int]:
    sizes = list_offered_sizes(load_config(folder).image_base_size)
    size = next(size for size in sizes if size.width_px == size.height_px)
    return size.width_px, size.height_px


def list_faults(figures: Sequence[Figures]) -> list[str]:
    """Return a line for each cell without figures."""
    return [f"{each.cell}: {each.fault}" for each in figures if each.fault]
