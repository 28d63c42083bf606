"""Figures of a load run: percentiles, throughput, errors; their JSON file, written and read."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from server.runware.errors import CommandError
from tools.bench.load_plan import Level, LoadKind, LoadPlan, Transport
from tools.bench.load_run import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Percentiles:
    """Of so many values, in seconds; by linear interpolation between neighbours."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    longest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResult:
    """The tasks of one size, number of steps and transport within a level."""

    transport: Transport
    width_px: int
    height_px: int
    num_steps: int
    num_requests: int
    latency: Percentiles | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelResult:
    """One level of load. Latencies and waits are of tasks that succeeded, and None without any.

    An open loop's begin when a task was due, and `send_lag_p99_s` is how late the client was: if
    it is not far below the latency, the client was the bottleneck. Raw values are in the order in
    which tasks were due, ends in the order in which they came.
    """

    kind: LoadKind
    load: float
    num_requests: int
    num_ok: int
    errors: dict[str, int]
    duration_s: float
    images_per_s: float
    megapixels_per_s: float
    send_lag_p99_s: float
    latency: Percentiles | None
    queue_wait: Percentiles | None
    groups: list[GroupResult]
    latencies_s: list[float]
    queue_waits_s: list[float]
    ends_s: list[float]

    @property
    def level(self) -> Level:
        return Level(self.kind, self.load)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """A whole run: what was sent where, and each level's figures."""

    hyimage: str
    date: str
    model: str
    worker: str
    plan: dict[str, Any]
    levels: list[LevelResult]


def new_report(
    plan: LoadPlan, model: str, worker: str, levels: Sequence[LevelResult]
) -> LoadReport:
    """Return the report of the levels that have been run."""
    fields = asdict(plan)
    del fields["levels"]  # the results name theirs
    return LoadReport(
        hyimage=version("hunyuan-image-server"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        worker=worker,
        plan=json.loads(json.dumps(fields)),  # lists for tuples, as a file has them
        levels=list(levels),
    )


def read_report(path: Path) -> LoadReport:
    """Return the report that `hyimage bench load --json` wrote.

    Raises:
        CommandError: the file cannot be read, or is something else.
    """
    try:
        return TypeAdapter(LoadReport).validate_json(path.read_bytes())
    except OSError as e:
        raise CommandError(f"{path} cannot be read: {e.strerror}") from None
    except ValidationError:
        raise CommandError(
            f"{path} holds no load run of this version; `hyimage bench load URL --json {path}` "
            "writes one"
        ) from None


def summarize(level: Level, samples: Sequence[Sample]) -> LevelResult:
    """Return the figures of a level from its samples, which are in the order they were due."""
    good = [sample for sample in samples if sample.is_ok]
    waits = [wait for sample in good if (wait := sample.queue_wait_s) is not None]
    latencies = [sample.latency_s for sample in good]
    duration_s = max((sample.ended_s for sample in samples), default=0.0)
    pixels = sum(sample.task.width_px * sample.task.height_px for sample in good)
    lags = [sample.sent_s - sample.due_s for sample in samples]
    return LevelResult(
        kind=level.kind,
        load=level.load,
        num_requests=len(samples),
        num_ok=len(good),
        errors=dict(Counter(sample.code for sample in samples if not sample.is_ok).most_common()),
        duration_s=_rounded(duration_s),
        images_per_s=_rounded(len(good) / duration_s if duration_s else 0.0),
        megapixels_per_s=_rounded(pixels / 1e6 / duration_s if duration_s else 0.0),
        send_lag_p99_s=_rounded(float(np.percentile(lags, 99))) if lags else 0.0,
        latency=percentiles(latencies),
        queue_wait=percentiles(waits),
        groups=_group(samples),
        latencies_s=[_rounded(value) for value in latencies],
        queue_waits_s=[_rounded(value) for value in waits],
        ends_s=sorted(_rounded(sample.ended_s) for sample in good),
    )


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Return the percentiles of some seconds, None of none."""
    if not values:
        return None
    p50, p90, p99 = (_rounded(float(p)) for p in np.percentile(values, (50, 90, 99)))
    return Percentiles(
        count=len(values),
        mean=_rounded(float(np.mean(values))),
        p50=p50,
        p90=p90,
        p99=p99,
        longest=_rounded(max(values)),
    )


def _group(samples: Sequence[Sample]) -> list[GroupResult]:
    groups: dict[tuple[Transport, int, int, int], list[Sample]] = {}
    for sample in samples:
        task = sample.task
        key = (task.transport, task.width_px, task.height_px, task.num_steps)
        groups.setdefault(key, []).append(sample)
    return [
        GroupResult(
            transport=transport,
            width_px=width_px,
            height_px=height_px,
            num_steps=num_steps,
            num_requests=len(group),
            latency=percentiles([sample.latency_s for sample in group if sample.is_ok]),
        )
        for (transport, width_px, height_px, num_steps), group in sorted(groups.items())
    ]


def _rounded(seconds: float) -> float:
    return round(seconds, 4)
