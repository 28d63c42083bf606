"""Calibration of a checkpoint: its step caches and its previews, written beside its weights.

step_cache.json says how its steps change, latent_preview.json how a latent looks without the VAE.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from cache.calibration import UNCALIBRATED, Calibration, save_calibration
from cache.fit import StepDelta, build_profile, fit_polynomial
from cache.plan import NO_REUSE
from cache.policies import Signal, relative_l1
from cache.protocol import Evaluation, RunFirstBlock, RunRemainingBlocks, StepContext
from model.loading.fingerprint import fingerprint
from model.resolution import Size, find_size
from model.template import Prompt
from pipeline.denoise import denoise, start_run
from pipeline.load import Pipeline, load_pipeline
from pipeline.noise import image_noise
from pipeline.preview import PreviewMap, fit_preview_map, patch_side, save_preview_map
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings
from pipeline.step_cache import teacache_signal
from schedulers.build import build_scheduler
from schedulers.trajectory import Trajectory
from tools.calibrate_grids import fit_checkpoint_grids
from tools.calibrate_guidance import calibrate_guidance, find_art
from tools.calibration_sweep import (
    NUM_SWEPT,
    SWEEP_STEPS,
    Swept,
    choose_defaults,
    list_thresholds,
    plot_curve,
    sweep_thresholds,
)
from tools.charts import check_charts
from tools.progress import Report, ignore, megabytes

STEPS = (20, 30, 50)
CHART_NAME = "step_cache.png"


@dataclass(slots=True)
class Recorder:
    """A step cache that reuses nothing and notes how much each step changes."""

    signal: Signal
    changes: list[StepDelta] = field(default_factory=list)
    first_changes: list[float] = field(default_factory=list)
    _previous: tuple[float, Tensor, Tensor, Tensor] | None = None

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        signal = self.signal(context, x_BSD).float()
        first_BSD = yield RunFirstBlock(x_BSD)
        last_BSD = yield RunRemainingBlocks(first_BSD)
        now = (context.sigma, signal, (first_BSD - x_BSD).float(), last_BSD.float())
        if self._previous is not None:
            before = self._previous
            self.first_changes.append(relative_l1(now[2], before[2]))
            self.changes.append(
                StepDelta(
                    before[0],
                    now[0],
                    relative_l1(now[1], before[1]),
                    relative_l1(now[3], before[3]),
                )
            )
        self._previous = now
        return last_BSD


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationResult:
    """What was written and where, the sweep behind it, and the mean output change by sigma."""

    calibration: Calibration
    preview: PreviewMap
    preview_path: Path
    preview_share: float  # seconds of a preview over those of a step
    swept: tuple[Swept, ...]
    path: Path
    chart: Path
    changes: dict[float, float]


def calibrate_checkpoint(
    settings: PipelineSettings, texts: Sequence[str], art: Path, report: Report = ignore
) -> CalibrationResult:
    """Record, fit, sweep; write step_cache.json and .png and latent_preview.json to the folder.

    Raises:
        ModelError: the checkpoint is not usable.
        CommandError: matplotlib is missing, or the artwork cannot be fetched.
    """
    check_charts()
    folder = Path(settings.checkpoint)
    scoring = find_art(folder, art)
    # An older calibration is replaced, so it must not stop the loading; nor does it take part.
    pipeline = load_pipeline(settings, megabytes(report, "loading"), with_calibration=False)
    changes, first_changes, latents, step_s = _record_all(pipeline, texts, report)
    preview = _fit_previews(pipeline, latents, fingerprint(folder), report)
    calibration = replace(_fit(pipeline, changes), fingerprint=preview.fingerprint, signal="input")
    square = _three_shapes(pipeline.sizes)[0]
    swept = sweep_thresholds(
        pipeline,
        calibration,
        list_thresholds([change.output for change in changes], first_changes),
        [
            new_request(pipeline, text, square, SWEEP_STEPS, seed)
            for seed, text in enumerate(texts[:NUM_SWEPT])
        ],
        report,
    )
    calibration = replace(
        choose_defaults(calibration, swept),
        guidance=calibrate_guidance(pipeline, texts, scoring, report),
        grids=fit_checkpoint_grids(pipeline, texts, report),
    )
    plot_curve(folder / CHART_NAME, swept)
    return CalibrationResult(
        calibration=calibration,
        preview=preview,
        preview_path=save_preview_map(folder, preview),
        preview_share=_time_previews(preview, latents) / step_s,
        swept=tuple(swept),
        path=save_calibration(folder, calibration),
        chart=folder / CHART_NAME,
        changes=_mean_changes(changes),
    )


def _record_all(
    pipeline: Pipeline, texts: Sequence[str], report: Report
) -> tuple[list[StepDelta], list[float], list[Tensor], float]:
    """Return all steps' changes, those of the first layer, each latent, and the seconds a step."""
    requests = list(_list_requests(pipeline, texts))
    changes: list[StepDelta] = []
    first_changes: list[float] = []
    latents: list[Tensor] = []
    started = time.perf_counter()
    for number, request in enumerate(requests, start=1):
        recorder, latent_BCYX = record(pipeline, request)
        changes += recorder.changes
        first_changes += recorder.first_changes
        latents.append(latent_BCYX)
        report("recording", number, len(requests))
    step_s = (time.perf_counter() - started) / sum(each.num_steps for each in requests)
    return changes, first_changes, latents, step_s


def record(pipeline: Pipeline, request: ImageRequest) -> tuple[Recorder, Tensor]:
    """Generate an image's steps without its pixels; return what was noted, and its latent_BCYX."""
    transformer = pipeline.transformer
    size = find_size(pipeline.sizes, request.width_px or 0, request.height_px or 0)
    shape = pipeline.latent_shape(size)
    shift = pipeline.generation.flow_shift
    solver = build_scheduler(request.scheduler, request.num_steps, shift).solver
    recorder = Recorder(teacache_signal(transformer, NO_REUSE))
    noise_BCYX = image_noise(request.seeds[0], shape).to(transformer.device)
    run = start_run(
        transformer,
        pipeline.rows(Prompt(text=request.prompt), None, size, request.guidance),
        Trajectory(solver, noise_BCYX),
        request.guidance,
        recorder,
    )
    for _ in denoise(transformer, [run]):
        pass
    return recorder, run.trajectory.latent_BCYX


def _fit_previews(
    pipeline: Pipeline, latents: Sequence[Tensor], fingerprint_: str, report: Report
) -> PreviewMap:
    """Return the map from latents to previews, fitted to what the VAE makes of them."""
    images: list[Tensor] = []
    for index, latent_BCYX in enumerate(latents):
        report("decoding", index, len(latents))
        images.append(pipeline.decode(latent_BCYX).cpu())
    report("decoding", len(latents), len(latents))
    patch = patch_side(pipeline.transformer.config.pixels_per_token)
    return fit_preview_map(latents, images, patch, fingerprint_)


def _time_previews(preview: PreviewMap, latents: Sequence[Tensor]) -> float:
    """Return the mean seconds of a preview, its copy to the host included."""
    preview.render(latents[0])  # the first one is slower
    started = time.perf_counter()
    for latent_BCYX in latents:
        preview.render(latent_BCYX)
    return (time.perf_counter() - started) / len(latents)


def _list_requests(pipeline: Pipeline, texts: Sequence[str]) -> Iterator[ImageRequest]:
    """Yield a request per prompt: squares, wide and tall images, of 20, 30 and 50 steps."""
    sizes = _three_shapes(pipeline.sizes)
    for index, text in enumerate(texts):
        yield new_request(pipeline, text, sizes[index % 3], STEPS[index // 3 % 3], seed=index)


def new_request(
    pipeline: Pipeline, text: str, size: Size, num_steps: int, seed: int
) -> ImageRequest:
    """Return a request for one image with the checkpoint's own guidance."""
    return ImageRequest(
        prompt=text,
        width_px=size.width_px,
        height_px=size.height_px,
        num_steps=num_steps,
        guidance=pipeline.generation.guidance,
        seeds=(seed,),
    )


def _three_shapes(sizes: Sequence[Size]) -> tuple[Size, Size, Size]:
    def nearest(ratio: float) -> Size:
        return min(sizes, key=lambda size: abs(size.width_px / size.height_px / ratio - 1))

    return nearest(1.0), nearest(16 / 9), nearest(9 / 16)


def _fit(pipeline: Pipeline, changes: Sequence[StepDelta]) -> Calibration:
    fit = fit_polynomial(changes)
    return replace(
        UNCALIBRATED,
        poly=fit.poly,
        x_range=fit.x_range,
        profile=() if fit.poly else build_profile(changes),
        steps=STEPS,
        shift=pipeline.generation.flow_shift,
        n=len(changes),
        rmse=fit.rmse,
        r2=fit.r2,
        tea_scale=1.0,
    )


def _mean_changes(changes: Sequence[StepDelta]) -> dict[float, float]:
    """Return the mean relative change of the layers' output by noise level, from high to low."""
    by_sigma: dict[float, list[float]] = defaultdict(list)
    for change in changes:
        by_sigma[round(change.sigma, 4)].append(change.output)
    return {sigma: sum(outputs) / len(outputs) for sigma, outputs in sorted(by_sigma.items())[::-1]}
