"""The other ranks of a mesh: processes that run every step together with rank 0.

Rank 0 decides which step runs next and sends a command to the others, so that all ranks run the
same steps in the same order. Tensors go through the mesh; these pipes carry only commands.
"""

import contextlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NoReturn

from model.errors import CheckpointError, ModelError
from model.mesh import Mesh, join_mesh, leave_mesh
from pipeline.generate import generate
from pipeline.load import load_pipeline
from pipeline.request import Event, ImageRequest
from pipeline.settings import PipelineSettings

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
FAULT_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, slots=True)
class Begin:
    """A request is generated from now on, as the run of this id."""

    run_id: str
    request: ImageRequest


@dataclass(frozen=True, slots=True)
class Advance:
    """One step of a run is generated now."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A run is generated no more."""

    run_id: str


Command = Begin | Advance | Drop


class Followers:
    """The processes of all ranks but the first, held by the first.

    If one of them dies, this process ends at once: the other ranks may wait for the dead one in a
    collective, NCCL's for ten minutes. The engine starts a whole new worker.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        """Start them; each loads its part of the checkpoint by itself."""
        context = multiprocessing.get_context("spawn")
        self._folder = Path(tempfile.mkdtemp(prefix="hyimage-mesh-"))
        self.rendezvous = self._folder / "rendezvous"
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._phase: Literal["joining", "loading", "running"] = "joining"
        self._is_stopping = False
        for rank in range(1, settings.num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=follow,
                args=(theirs, settings, rank, self.rendezvous),
                name=f"hyimage-rank-{rank}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        threading.Thread(target=self._watch, name="ranks-watch", daemon=True).start()

    def wait_until_loaded(self) -> None:
        """Wait for every rank.

        Raises:
            CheckpointError: one of them could not load its part.
        """
        for rank, pipe in enumerate(self._pipes, start=1):
            try:
                fault = pipe.recv()
            except (EOFError, OSError):
                fault = "it died; -9 usually means that memory ran out"
            if fault:
                raise CheckpointError(f"rank {rank} could not load its part: {fault}")
        self._phase = "running"

    def join_mesh(self, settings: PipelineSettings) -> Mesh:
        """Return the first rank's place in the mesh, once all have joined it."""
        mesh = join_settings_mesh(settings, 0, self.rendezvous)
        self._phase = "loading"  # without a collective: `wait_until_loaded` reports what fails
        return mesh

    def send(self, command: Command) -> None:
        """Send a command to every rank.

        Raises:
            OSError: one of them is gone.
        """
        for pipe in self._pipes:
            pipe.send(command)

    def abandon(self) -> NoReturn:
        """Kill all ranks and end this process, without waiting for any of them."""
        for process in self._processes:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        logging.shutdown()
        os._exit(FAULT_EXIT_CODE)

    def _watch(self) -> None:
        """Abandon the worker when a rank dies, unless `wait_until_loaded` reports it."""
        alive = {process.sentinel: process for process in self._processes}
        while alive:
            for sentinel in wait(list(alive)):
                assert isinstance(sentinel, int)
                process = alive.pop(sentinel)
                process.join()
                if self._is_stopping:
                    return
                if self._phase == "running" or (self._phase == "joining" and process.exitcode):
                    log.error("%s ended with exit code %s", process.name, process.exitcode)
                    self.abandon()

    def stop(self) -> None:
        """End them: an idle rank ends by itself when its pipe closes."""
        self._is_stopping = True
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()  # a server's ranks ignore SIGTERM, as its worker does
                process.join(STOP_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def started_mesh(settings: PipelineSettings) -> Iterator[tuple[Mesh, Followers | None]]:
    """Yield the first rank's place, and the others if there are any; end them afterwards."""
    if settings.num_ranks == 1:
        yield Mesh(), None
        return
    followers = Followers(settings)
    try:
        yield followers.join_mesh(settings), followers
    finally:
        followers.stop()
        leave_mesh()


def join_settings_mesh(settings: PipelineSettings, rank: int, rendezvous: Path) -> Mesh:
    """Return a rank's place in the mesh of these settings."""
    return join_mesh(
        rank,
        settings.cfg_parallel_size,
        settings.tensor_parallel_size,
        rendezvous,
        settings.device,
        expert_parallel=settings.expert_parallel,
    )


def settings_of_rank(settings: PipelineSettings, rank: int) -> PipelineSettings:
    """Return the settings of one rank: on GPUs each has its own."""
    if settings.device != "cuda" or settings.num_ranks == 1:
        return settings
    return settings.model_copy(update={"device": f"cuda:{rank}"})


def follow(pipe: Connection, settings: PipelineSettings, rank: int, rendezvous: Path) -> None:
    """Load this rank's shard and run rank 0's commands, until the pipe closes.

    Anything but a ModelError, which rank 0 raises at the same step, ends this rank, and with it the
    worker.
    """
    end_with_parent()
    try:
        mesh = join_settings_mesh(settings, rank, rendezvous)
        pipeline = load_pipeline(settings_of_rank(settings, rank), mesh=mesh)
    except ModelError as e:
        pipe.send(str(e))
        return
    pipe.send("")
    generating: dict[str, Iterator[Event]] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            match pipe.recv():
                case Begin(run_id, request):
                    generating[run_id] = generate(pipeline, request)
                case Advance(run_id):
                    try:
                        next(generating.get(run_id, iter(())), None)
                    except ModelError:  # rank 0 raises the same one, and reports it
                        generating.pop(run_id, None)
                case Drop(run_id):
                    generating.pop(run_id, None)
    leave_mesh()


def end_with_parent() -> None:
    """End this process when the one that started it dies, even if it loads or waits then."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(FAULT_EXIT_CODE)

    threading.Thread(target=watch, args=(parent.sentinel,), name="parent", daemon=True).start()
