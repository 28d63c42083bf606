"""The ledger: cells in processes of their own, resumed, compared, shown."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.guidance import UNCALIBRATED_INTERVAL
from server.runware.errors import CommandError
from server.settings import Settings, load_settings
from tools.ledger.book import (
    FILE_NAME,
    Figures,
    Ledger,
    Setup,
    load_ledger,
    resume_ledger,
    save_ledger,
)
from tools.ledger.cells import AGAIN, CONVERGED, REFERENCE, Cell, list_cells
from tools.ledger.compare import list_changes, measure_noise
from tools.ledger.measure import Task, measure_or_fault, save_images
from tools.ledger.page import build_page
from tools.ledger.run import LedgerOptions, Plan, build_task, plan_ledger, run_cell, run_ledger

SETUP = Setup(
    weights="0123", prompts=("a red fox",), sizes=((256, 256),), steps=2, guidance=5.0, machine="x"
)
BASE = Figures(
    cell="reference 2 steps", axis=REFERENCE, psnr=99.0, least_psnr=99.0, ssim=1.0,
    psnr_converged=30.0, ssim_converged=0.9, adherence=0.5, evaluations=2.0, rows=4.0,
    seconds=2.0, seconds_spread=0.01, peak_bytes=1_000_000_000,
)  # fmt: skip
CACHED = replace(BASE, cell="high 2 steps", axis="cache", psnr=40.0, rows=2.0)


def ledger_of(*figures: Figures, setup: Setup = SETUP) -> Ledger:
    return Ledger(setup, figures)


@pytest.fixture
def settings(tiny_checkpoint: Path) -> Settings:
    return load_settings(None, worker__checkpoint=str(tiny_checkpoint))


def small_plan(settings: Settings, tmp_path: Path, *cells: Cell) -> Plan:
    options = LedgerOptions(num_prompts=1, steps=2, size_px=(256, 256))
    return replace(plan_ledger(settings, options, tmp_path / "art"), cells=cells)


def test_a_ledger_measures_its_cells_and_goes_on_with_those_it_lacks(
    settings: Settings, tmp_path: Path
) -> None:
    """The first cell in this process, which is quicker; the second in its own, with another."""
    base = Cell(axis=REFERENCE, steps=2)
    plan = small_plan(settings, tmp_path, base, replace(base, axis="mode", mode="tensor2-expert"))
    folder, seen = tmp_path / "ledger", list[str]()
    run_ledger(
        folder, settings, replace(plan, cells=plan.cells[:1]),
        after_cell=lambda figures: seen.append(figures.cell), measure=measure_or_fault,
    )  # fmt: skip
    reported: list[tuple[str, int, int]] = []
    ledger = run_ledger(
        folder, settings, plan,
        lambda *progress: reported.append(progress), lambda figures: seen.append(figures.cell),
    )  # fmt: skip
    assert seen == [cell.name for cell in plan.cells]  # the first was not measured again
    assert load_ledger(folder / FILE_NAME) == ledger
    reference, mesh = ledger.figures
    assert (reference.psnr, reference.evaluations, reference.rows) == (99.0, 2.0, 4.0)
    assert (reference.psnr_converged, reference.adherence, reference.fault) == (None, None, "")
    assert mesh.psnr is not None, mesh.fault
    assert mesh.psnr > 50
    assert mesh.peak_bytes is not None
    assert mesh.peak_bytes > 2 * 100_000_000  # two processes, each with torch
    assert reported[-1] == ("images", 2, 2)
    assert mesh.cell in (folder / "ledger.html").read_text()


def fake_measure(task: Task, report: Callable[[int], None]) -> Figures:
    if task.cell.axis in (REFERENCE, CONVERGED):
        save_images(task.images, task.cell.axis, [np.zeros((8, 8, 3), np.uint8)])
    report(1)
    return replace(BASE, cell=task.cell.name, axis=task.cell.axis)


def test_what_stops_a_run_costs_the_cell_it_was_at(settings: Settings, tmp_path: Path) -> None:
    plan = small_plan(settings, tmp_path, *list_cells(2))
    folder, done = tmp_path / "ledger", list[str]()

    def stop_at_third(task: Task, report: Callable[[int], None]) -> Figures:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.cell.name)
        return fake_measure(task, report)

    with pytest.raises(KeyboardInterrupt):
        run_ledger(folder, settings, plan, measure=stop_at_third)
    assert [each.cell for each in load_ledger(folder / FILE_NAME).figures] == done
    rest: list[str] = []
    ledger = run_ledger(
        folder, settings, plan,
        after_cell=lambda figures: rest.append(figures.cell), measure=fake_measure,
    )  # fmt: skip
    assert done + rest == [cell.name for cell in plan.cells]
    assert len(ledger.figures) == len(plan.cells)


def test_references_whose_images_are_gone_are_generated_again(
    settings: Settings, tmp_path: Path
) -> None:
    plan = small_plan(settings, tmp_path, *list_cells(2)[:3])
    folder, seen = tmp_path / "ledger", list[str]()
    run_ledger(folder, settings, plan, measure=fake_measure)
    (folder / "images" / "reference-0.png").unlink()
    run_ledger(
        folder, settings, plan,
        after_cell=lambda figures: seen.append(figures.cell), measure=fake_measure,
    )  # fmt: skip
    assert seen == [plan.cells[1].name]


def test_a_cell_that_cannot_run_is_noted_with_its_fault(settings: Settings, tmp_path: Path) -> None:
    cell = Cell(axis="dtype", dtype="bfloat16", steps=2)
    task = build_task(cell, settings, small_plan(settings, tmp_path), tmp_path)
    nowhere = task.settings.model_copy(update={"checkpoint": str(tmp_path / "nowhere")})
    figures = measure_or_fault(replace(task, settings=nowhere), lambda done: None)
    assert (figures.cell, figures.psnr) == (cell.name, None)
    assert "nowhere/config.json" in figures.fault


@dataclass(frozen=True)
class Deadly:
    """A task that ends the process that unpickles it."""

    cell: Cell

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_the_death_of_a_cell_s_process_is_its_fault() -> None:
    task: Any = Deadly(Cell(axis="dtype", steps=2))
    figures = run_cell(task, lambda done: None, target=print)
    assert "its process ended with 9" in figures.fault
    assert figures.cell == task.cell.name


def test_a_cell_s_warnings_are_noted(settings: Settings, tmp_path: Path) -> None:
    """Without a calibrated interval the preset changes nothing, which the ledger has to say."""
    cell = Cell(axis="guidance", guidance="interval", steps=1)
    plan = small_plan(settings, tmp_path, cell)
    figures = measure_or_fault(build_task(cell, settings, plan, tmp_path), lambda done: None)
    assert figures.note == UNCALIBRATED_INTERVAL


def test_a_cell_is_requested_as_the_api_would(settings: Settings, tmp_path: Path) -> None:
    cell = Cell(
        axis="pair", mode="cfg2", acceleration="high", guidance="interval", scheduler="UniPC",
        steps=9,
    )  # fmt: skip
    task = build_task(cell, settings, small_plan(settings, tmp_path), tmp_path)
    (request,) = task.requests
    assert (request.num_steps, request.scheduler, request.guidance) == (9, "UniPC", 7.0)
    assert (request.width_px, request.height_px, request.seeds) == (256, 256, (0,))
    assert request.cache.is_on
    assert request.guidance_plan.interval == "calibrated"
    assert task.settings.cfg_parallel_size == 2
    assert task.settings.weights_dtype == task.settings.decoder_dtype == "float32"


def save_ledger_in(folder: Path, ledger: Ledger) -> Path:
    folder.mkdir(exist_ok=True)
    save_ledger(folder / FILE_NAME, ledger)
    return folder / FILE_NAME


def test_the_file_has_one_line_for_each_cell(tmp_path: Path) -> None:
    path = save_ledger_in(tmp_path, ledger_of(BASE, CACHED))
    lines = path.read_text().splitlines()
    assert [json.loads(line.rstrip(","))["cell"] for line in lines[2:4]] == [
        BASE.cell,
        CACHED.cell,
    ]
    assert load_ledger(path) == ledger_of(BASE, CACHED)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_ledger_of_another_setup_is_not_gone_on_with(tmp_path: Path) -> None:
    path = save_ledger_in(tmp_path, ledger_of(BASE))
    other = replace(SETUP, steps=30, guidance=7.0)
    with pytest.raises(CommandError, match="measured with other steps, guidance"):
        resume_ledger(path, other)
    assert resume_ledger(tmp_path / "none.json", other) == Ledger(other)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with pytest.raises(CommandError, match="No such file"):
        load_ledger(path)
    for text in ("{", "[]", '{"setup": {}, "cells": []}'):
        path.write_text(text)
        with pytest.raises(CommandError, match="no ledger of this version"):
            load_ledger(path)


AGAIN_EQUAL = replace(BASE, cell="again 2 steps", axis=AGAIN)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"psnr": 40.09}, []),
        ({"psnr": 39.8}, ["psnr 40 -> 39.8 (-0.20 dB)"]),
        ({"least_psnr": 98.0}, ["least_psnr 99 -> 98 (-1.00 dB)"]),
        ({"rows": 2.1}, ["rows 2 -> 2.1 (+5.0%)"]),
        ({"ssim": 0.99}, []),
        ({"seconds": 2.03}, []),
        ({"seconds": 2.5}, ["seconds 2 -> 2.5 (+25.0%, noise 2%)"]),
        ({"peak_bytes": 1_020_000_000}, []),
        ({"peak_bytes": 2_000_000_000}, ["peak_bytes 1e+09 -> 2e+09 (+100.0%, noise 4%)"]),
        ({"adherence": 0.25}, ["adherence 0.5 -> 0.25 (-25 points)"]),
        ({"adherence": None}, ["adherence 0.5 -> none (not measured in one of them)"]),
        ({"fault": "out of memory"}, ["measured -> out of memory"]),
    ],
)
def test_changes_beyond_the_tolerances_are_named(
    changes: dict[str, object], said: Sequence[str]
) -> None:
    old = ledger_of(BASE, CACHED, AGAIN_EQUAL)
    new = ledger_of(BASE, replace(CACHED, **changes), AGAIN_EQUAL)  # type: ignore[arg-type]
    assert list_changes(old, new) == [f"{CACHED.cell}: {line}" for line in said]


def test_a_change_of_seconds_within_the_noise_is_none() -> None:
    again = replace(AGAIN_EQUAL, seconds=2.4)  # 20 % apart
    old = ledger_of(BASE, CACHED, again)
    assert list_changes(old, ledger_of(BASE, replace(CACHED, seconds=2.7), again)) == []
    assert measure_noise(old).seconds == pytest.approx(0.2)
    assert "99: equal" in measure_noise(old).text


def test_cells_that_come_and_go_and_other_weights_are_named() -> None:
    other = replace(SETUP, weights="4567")
    assert list_changes(ledger_of(BASE), ledger_of(CACHED, setup=other)) == [
        "weights: 0123 -> 4567",
        f"{BASE.cell}: not measured any more",
        f"{CACHED.cell}: new",
    ]


def test_seconds_of_another_machine_are_not_compared_and_other_steps_not_at_all() -> None:
    slower = replace(CACHED, seconds=20.0)
    elsewhere = replace(SETUP, machine="y")
    assert list_changes(ledger_of(CACHED), ledger_of(slower, setup=elsewhere)) == []
    with pytest.raises(CommandError, match="their steps differ"):
        list_changes(ledger_of(BASE), ledger_of(BASE, setup=replace(SETUP, steps=9)))


def test_cells_have_names_of_their_own_and_the_references_come_first() -> None:
    cells = list_cells(20)
    assert len({cell.name for cell in cells}) == len(cells)
    assert [cell.axis for cell in cells[:2]] == [CONVERGED, REFERENCE]
    assert cells[-1].axis == AGAIN
    axes = {cell.axis for cell in cells}
    assert {"mode", "dtype", "quantization", "cache", "guidance", "solver", "pair"} <= axes


def test_the_page_is_one_file_that_shows_faults_too() -> None:
    noted = replace(CACHED, note="every step was guided")
    page = build_page(ledger_of(BASE, noted, replace(BASE, cell="<b>", fault="no & memory")))
    assert "every step was guided" in page
    assert "no &amp; memory" in page
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert "href=" not in page
