"""The recipe of the tiny checkpoint, from nothing; it can be stopped and started at any time.

Artwork -> tokenizer -> closed-form autoencoder -> latents -> transformer and decoder -> export.
Everything lies in one run folder outside the repository; each part is skipped when it is done.
"""

import contextlib
import fcntl
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from training.art import fetch_art
from training.environment import training_environment
from training.export import export_checkpoint
from training.latents import OFFERED_GRIDS, SMALL_GRID, build_latents
from training.phases import PHASES, Phase, cool_down
from training.plot import plot_losses, read_metrics
from training.samples import save_samples
from training.state import Report, append_line, load_state
from training.tokenizer import build_tokenizer
from training.transformer import STATE_NAME
from training.vae import build_started_vae, train_decoder
from training.vae_refine import refine_decoder

DECODER_STEPS, REFINE_STEPS = 1000, 1000
EXPORT_EVERY_S, SAMPLES_EVERY_S = 600.0, 1800.0
POLL_S = 5.0


class Workers:
    """The processes that train; all are restarted when one of them fails."""

    def __init__(
        self, run: Path, world_size: int, phases: tuple[Phase, ...], report: Report
    ) -> None:
        self._run, self._world_size = run, world_size
        self._phases, self._report = phases, report
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start every process at the last saved state."""
        for stale in self._run.glob("rendezvous-*"):
            stale.unlink()
        rendezvous = self._run / f"rendezvous-{time.time_ns()}"
        log = (self._run / "workers.log").open("ab")
        for rank in range(self._world_size):
            command = [
                sys.executable, "-m", "training.transformer",
                str(self._run), str(rank), str(self._world_size), str(rendezvous),
                json.dumps([asdict(phase) for phase in self._phases]),
            ]  # fmt: skip
            self._processes.append(
                subprocess.Popen(command, env=training_environment(1), stdout=log, stderr=log)
            )
        log.close()

    def poll(self) -> bool:
        """Return whether training has finished; restart it when a process has failed."""
        codes = [process.poll() for process in self._processes]
        if all(code == 0 for code in codes):
            return True
        if any(code not in (None, 0) for code in codes):
            line = f"a process ended with {codes}; starting again"
            append_line(self._run / "train.log", line)
            self._report(line)
            self.stop()
            time.sleep(POLL_S)
            self.start()
        return False

    def stop(self) -> None:
        """End every process. The state file is complete at any moment."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()


def train_tiny(run: Path, report: Report, world_size: int = 2) -> Path:
    """Train the tiny checkpoint in the folder `run` and return the folder of its export.

    Raises:
        RuntimeError: the artwork cannot be fetched, or another process trains in this folder.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process already trains in {run}") from None
        return _train(run, report, world_size)


def _train(run: Path, report: Report, world_size: int) -> Path:
    art, export = run / "art", run / "export" / "tiny"
    report("artwork: fetching through npm")
    fetch_art(art)
    report("tokenizer")
    build_tokenizer(run / "tokenizer")
    report("autoencoder: closed-form start")
    vae = build_started_vae(run, art).requires_grad_(requires_grad=False)
    report("latents: painting and encoding the scenes")
    build_latents(run, art, vae, (SMALL_GRID, *OFFERED_GRIDS), report)
    report("decoder")
    train_decoder(run, art, DECODER_STEPS, report)
    refine_decoder(run, art, REFINE_STEPS, report)
    report("transformer: training; it may be stopped at any time, and goes on when started again")
    workers = Workers(run, world_size, PHASES, report)
    workers.start()
    try:
        _watch(run, export, workers, report)
    finally:
        workers.stop()
    export_checkpoint(run, export)
    report(_describe_scores(save_samples(run, export)))
    return export


def _watch(run: Path, export: Path, workers: Workers, report: Report) -> None:
    """Export and generate samples now and then until training ends."""
    exported = sampled = time.monotonic()
    num_steps = sum(phase.num_steps for phase in PHASES)
    last_step: float | None = 0
    while not workers.poll():
        time.sleep(POLL_S)
        rows = read_metrics(run)[-1:]
        if rows and rows[0]["step"] != last_step:
            last_step = rows[0]["step"]
            report(_describe(rows[0], num_steps))
        now = time.monotonic()
        if now - exported > EXPORT_EVERY_S and load_state(run / STATE_NAME) is not None:
            export_checkpoint(run, export)
            plot_losses(run)
            exported = now
            if now - sampled > SAMPLES_EVERY_S:
                report(_describe_scores(save_samples(run, export)))
                sampled = now


def _describe(row: dict[str, float | None], num_steps: int) -> str:
    """Return a line on how far a run is."""
    step, s_per_step = row["step"] or 0, row["s_per_step"] or 0
    losses = ", ".join(
        f"{name} {value:.3f}"
        for name in ("flow", "small", "layout", "text")
        if (value := row.get(name)) is not None
    )
    hours = (num_steps - step) * s_per_step / 3600
    return (
        f"step {step:.0f} of {num_steps} ({step / num_steps:.0%}), {row['images']:.0f} images: "
        f"{losses}; {s_per_step:.1f} s a step, about {hours:.1f} h left"
    )


def _describe_scores(shares: dict[str, float]) -> str:
    return "held-out captions: " + ", ".join(
        f"{part} {share:.0%}" for part, share in shares.items()
    )


def export_cooled(run: Path, num_steps: int, report: Report, world_size: int = 2) -> Path:
    """Train a copy of the run to a falling learning rate, and export that instead.

    The run itself is left as it is, to go on at the full rate later. Stop it before.
    """
    copy = run / "cooled"
    state = load_state(run / STATE_NAME)
    if state is None:
        raise RuntimeError(f"{run / STATE_NAME} does not exist; train first")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("art", "latents", "tokenizer", "vae.pt"):
        (copy / name).symlink_to(run / name)
    shutil.copyfile(run / STATE_NAME, copy / STATE_NAME)
    workers = Workers(copy, world_size, cool_down(state["step"], num_steps), report)
    workers.start()
    try:
        while not workers.poll():
            time.sleep(POLL_S)
    finally:
        workers.stop()
    export_checkpoint(copy, run / "export" / "tiny")
    return run / "export" / "tiny"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        # By hand only: the command that trains is `hyimage train-tiny`.
        export_cooled(Path(sys.argv[1]), int(sys.argv[2]), logging.getLogger(__name__).warning)
