"""How fast a checkpoint loads, beside bare reads of the same files; and whether it keeps to memory.

Every measurement runs in a process of its own, with the files first dropped from the system's
cache, in turns: bare, load, bare, load...
"""

import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from server.errors import CommandError
from server.settings import WorkerSettings

CHUNK_BYTES = 16 << 20
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """Medians over the rounds; `ratio` is the median of each round's own ratio of speeds."""

    file_bytes: int
    bare_s: float
    load_s: float
    ratio: float
    parameter_bytes: int
    peak_bytes: int  # of the process while it loaded, beyond what it was before


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitedResult:
    """A picture drawn by a process that may not hold more than a limit."""

    limit_bytes: int
    peak_bytes: int
    load_s: float
    step_s: float


def run_load_bench(
    settings: WorkerSettings, rounds: int, report: Callable[[str], None]
) -> LoadResult:
    """Load a checkpoint several times, between bare reads of its files.

    Raises:
        CommandError: there are no files, or a process ended badly.
    """
    paths = _weight_files(Path(settings.checkpoint))
    bare, loads, peak, parameters = [], [], 0, 0.0
    for index in range(rounds):
        report(f"round {index + 1} of {rounds}")
        _forget(paths)
        bare.append(_in_process(_read_all, paths)[0])
        _forget(paths)
        seconds, parameters, grown = _in_process(_load, settings)
        loads.append(seconds)
        peak = max(peak, int(grown))
    return LoadResult(
        file_bytes=sum(path.stat().st_size for path in paths),
        bare_s=statistics.median(bare),
        load_s=statistics.median(loads),
        ratio=statistics.median(b / ours for b, ours in zip(bare, loads, strict=True)),
        parameter_bytes=int(parameters),
        peak_bytes=peak,
    )


def run_limited(settings: WorkerSettings, limit_bytes: int, num_steps: int) -> LimitedResult:
    """Load and draw in a process that gets no memory beyond a limit.

    Raises:
        CommandError: it did not manage.
    """
    _forget(_weight_files(Path(settings.checkpoint)))
    load_s, step_s, peak = _in_process(_draw_limited, (settings, limit_bytes, num_steps))
    return LimitedResult(
        limit_bytes=limit_bytes, peak_bytes=int(peak), load_s=load_s, step_s=step_s
    )


def write_result(path: Path, *results: LoadResult | LimitedResult | None) -> None:
    """Write the figures as JSON."""
    fields = {type(result).__name__: asdict(result) for result in results if result is not None}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _weight_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CommandError(f"{folder} holds no .safetensors file")
    return paths


def _forget(paths: list[Path]) -> None:
    """Drop files from the system's cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _in_process(work: Callable[..., tuple[float, float, float]], argument: object) -> list[float]:
    """Run in a fresh process and return its figures."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, argument, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        figures = ours.recv()
    except EOFError:
        process.join()
        raise CommandError(f"the measuring process ended with {process.exitcode}") from None
    process.join()
    if isinstance(figures, str):
        raise CommandError(figures)
    return list(figures)


def _answer(
    work: Callable[..., tuple[float, float, float]], argument: object, connection: Connection
) -> None:
    try:
        connection.send(work(argument))
    except (ValueError, RuntimeError, MemoryError) as e:
        connection.send(f"{type(e).__name__}: {e}")


def _read_all(paths: list[Path]) -> tuple[float, float, float]:
    buffer = bytearray(CHUNK_BYTES)
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start, 0, 0


def _load(settings: WorkerSettings) -> tuple[float, float, float]:
    from server.worker.parts import build_parts

    before = _resident_bytes("VmRSS")
    start = time.perf_counter()
    parts = build_parts(settings)
    seconds = time.perf_counter() - start
    parameters = sum(p.nbytes for p in parts.transformer.parameters())
    return seconds, parameters, _resident_bytes("VmHWM") - before


def _draw_limited(asked: tuple[WorkerSettings, int, int]) -> tuple[float, float, float]:
    from server.bench.pictures import draw_pixels, new_square_job
    from server.worker.parts import build_parts

    settings, limit_bytes, num_steps = asked
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    start = time.perf_counter()
    parts = build_parts(settings)
    loaded = time.perf_counter()
    side = parts.transformer.config.image_base_size
    draw_pixels(parts, new_square_job(side, "a red fox in the snow", 1, 5.0, num_steps))
    done = time.perf_counter()
    return loaded - start, (done - loaded) / num_steps, _resident_bytes("VmHWM")


def _resident_bytes(field: str) -> int:
    """Return a figure of this process's memory."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
