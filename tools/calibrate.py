"""`hyimage calibrate`: measure how a checkpoint's steps change, and write its step_cache.json."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from cache.calibration import (
    DEFAULT_DISTANCE,
    DEFAULT_THRESHOLD,
    UNCALIBRATED,
    Calibration,
    save_calibration,
)
from cache.fit import StepDelta, build_profile, fit_polynomial
from cache.plan import NO_REUSE, CachePlan
from cache.policies import Signal, relative_l1
from cache.protocol import Evaluation, RunFirstBlock, RunRemainingBlocks, StepContext
from model.loading.fingerprint import fingerprint
from model.resolution import Size, find_size
from model.template import Prompt
from pipeline.denoise import denoise, start_run
from pipeline.load import Pipeline, load_pipeline
from pipeline.noise import image_noise
from pipeline.request import ImageRequest
from pipeline.step_cache import teacache_signal
from schedulers.build import build_scheduler
from schedulers.trajectory import Trajectory
from server.settings import Settings
from tools.bench.images import Generated, generate_pixels, read_prompts
from tools.charts import plot_chart
from tools.similarity import psnr

STEPS = (20, 30, 50)
NUM_SHOWN_CHANGES = 10
SWEEP_STEPS, NUM_SWEPT = 30, 8
# What the API's default distance and threshold are made to save, in times fewer evaluations, and
# what the readiest values save at least: fbCacheThreshold 0 is only 4/3 as ready as its default.
DEFAULT_SAVING, MOST_SAVING = 1.5, 2.1
_TEA_MULTIPLES = (1.2, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
_FB_MULTIPLES = (0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 4.5)


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


@dataclass(frozen=True, slots=True)
class Swept:
    """A threshold, how many times fewer evaluations it needs, and the median PSNR in dB."""

    policy: str
    threshold: float
    saving: float
    psnr: float


def calibrate_checkpoint(settings: Settings, num_prompts: int, prompts: Path | None) -> Path:
    """Record, fit, sweep, and write step_cache.json and step_cache.png beside the weights.

    Raises:
        ModelError: the checkpoint is not usable.
        CommandError: too few prompts.
    """
    folder = Path(settings.worker.checkpoint)
    # An older calibration is replaced, so it must not stop the loading; nor does it take part.
    with _progress() as progress:
        loading = progress.add_task("loading", total=None)
        pipeline = load_pipeline(
            settings.worker,
            lambda done, total: progress.update(loading, completed=done >> 20, total=total >> 20),
            with_calibration=False,
        )
        texts = read_prompts(prompts, num_prompts)
        requests = list(_list_requests(pipeline, texts))
        recording = progress.add_task("recording", total=len(requests))
        changes: list[StepDelta] = []
        first_changes: list[float] = []
        for request in requests:
            recorder = record(pipeline, request)
            changes += recorder.changes
            first_changes += recorder.first_changes
            progress.advance(recording)
        calibration = replace(
            _fit(pipeline, changes),
            fingerprint=fingerprint(folder),
            signal="input",
        )
        swept = _sweep(pipeline, calibration, changes, first_changes, texts[:NUM_SWEPT], progress)
    calibration = _choose_defaults(calibration, swept)
    _plot_curve(folder / "step_cache.png", swept)
    path = save_calibration(folder, calibration)
    _print(calibration, swept, path)
    _print_changes(changes)
    return path


def record(pipeline: Pipeline, request: ImageRequest) -> Recorder:
    """Generate an image's steps without its pixels, and return what was noted."""
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
    return recorder


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


def _sweep(
    pipeline: Pipeline,
    calibration: Calibration,
    changes: Sequence[StepDelta],
    first_changes: Sequence[float],
    texts: Sequence[str],
    progress: Progress,
) -> list[Swept]:
    """Draw with both policies at rising thresholds; compare with the uncached images."""
    tea_unit = float(torch.tensor([change.output for change in changes]).median())
    fb_unit = float(torch.tensor(first_changes).median())
    settings = [("teaCache", tea_unit * m) for m in _TEA_MULTIPLES]
    settings += [("fbCache", fb_unit * m) for m in _FB_MULTIPLES]
    swept_pipeline = replace(
        pipeline, calibration=replace(calibration, tea_scale=1.0, fb_threshold=1.0)
    )
    size = _three_shapes(pipeline.sizes)[0]
    requests = [
        new_request(pipeline, text, size, SWEEP_STEPS, seed=i) for i, text in enumerate(texts)
    ]
    sweeping = progress.add_task("sweeping", total=len(requests) * (1 + len(settings)))

    def generate_all(plan: CachePlan) -> list[Generated]:
        generated = []
        for request in requests:
            generated.append(generate_pixels(swept_pipeline, replace(request, cache=plan)))
            progress.advance(sweeping)
        return generated

    truths = generate_all(NO_REUSE)
    swept = []
    for policy, threshold in settings:
        plan = CachePlan(start=0, end=SWEEP_STEPS)
        key = "tea_distance" if policy == "teaCache" else "fb_threshold_scale"
        generated = generate_all(replace(plan, **{key: threshold}))  # type: ignore[arg-type]
        values = [psnr(d.pixels_yx3, t.pixels_yx3) for d, t in zip(generated, truths, strict=True)]
        evaluations = sum(d.num_evaluations for d in generated) / len(generated)
        middle = float(torch.tensor(values).clamp_max(99.0).median())
        swept.append(Swept(policy, threshold, SWEEP_STEPS / evaluations, middle))
    return swept


def _choose_defaults(calibration: Calibration, swept: Sequence[Swept]) -> Calibration:
    """Let the API's values mean the thresholds that save what they should."""
    tea_rows = [row for row in swept if row.policy == "teaCache"]
    fb_rows = [row for row in swept if row.policy == "fbCache"]
    tea = threshold_for(tea_rows, DEFAULT_SAVING)
    fb = max(
        threshold_for(fb_rows, DEFAULT_SAVING),
        threshold_for(fb_rows, MOST_SAVING) * (1 - DEFAULT_THRESHOLD),
    )
    curve: tuple[dict[str, float | str], ...] = tuple(
        {"policy": row.policy, "threshold": row.threshold, "saving": row.saving, "psnr": row.psnr}
        for row in swept
    )
    return replace(calibration, tea_scale=tea / DEFAULT_DISTANCE, fb_threshold=fb, sweep=curve)


def threshold_for(rows: Sequence[Swept], saving: float) -> float:
    """Return the threshold with a saving, straight between the swept ones, or the nearest end."""
    ordered = sorted(rows, key=lambda row: row.threshold)
    for low, high in pairwise(ordered):
        if low.saving <= saving <= high.saving and high.saving > low.saving:
            share = (saving - low.saving) / (high.saving - low.saving)
            return low.threshold + share * (high.threshold - low.threshold)
    return min(ordered, key=lambda row: abs(row.saving - saving)).threshold


def _plot_curve(path: Path, swept: Sequence[Swept]) -> None:
    series = {
        policy: [(row.saving, row.psnr) for row in swept if row.policy == policy]
        for policy in ("teaCache", "fbCache")
    }
    plot_chart(
        path,
        series,
        title=f"Step caches at {SWEEP_STEPS} steps, against the uncached image",
        x_label="times fewer evaluations",
        y_label="median PSNR, dB",
    )


def _print(calibration: Calibration, swept: Sequence[Swept], path: Path) -> None:
    console = Console()
    table = Table("policy", "threshold", "saving", "PSNR, dB")
    for row in swept:
        table.add_row(row.policy, f"{row.threshold:.4f}", f"{row.saving:.2f}x", f"{row.psnr:.1f}")
    console.print(table)
    if calibration.poly:
        console.print(
            f"polynomial of degree {len(calibration.poly) - 1}, R2 {calibration.r2:.2f}, "
            f"RMSE {calibration.rmse:.4f}, from {calibration.n} steps"
        )
    else:
        console.print(
            f"no polynomial foretells the output (R2 {calibration.r2:.2f}); TeaCache uses the mean "
            "change by noise level instead"
        )
    console.print(
        f"teaCacheDistance {DEFAULT_DISTANCE} = {calibration.tea_scale * DEFAULT_DISTANCE:.4f}, "
        f"default fbCacheThreshold = {calibration.fb_threshold:.4f}"
    )
    console.print(f"{path} and {path.with_suffix('.png').name}", highlight=False)


def _print_changes(changes: Sequence[StepDelta]) -> None:
    """Print how much the layers' output changes from step to step, along the noise levels."""
    by_sigma: dict[float, list[float]] = defaultdict(list)
    for change in changes:
        by_sigma[round(change.sigma, 4)].append(change.output)
    means = {sigma: sum(own) / len(own) for sigma, own in by_sigma.items()}
    sigmas = sorted(means, reverse=True)
    shown = sigmas[:: max(1, len(sigmas) // NUM_SHOWN_CHANGES)]
    told = ", ".join(f"{means[sigma]:.3f} at {sigma:.2f}" for sigma in shown)
    Console().print(f"relative change of the output by noise level: {told}", highlight=False)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
