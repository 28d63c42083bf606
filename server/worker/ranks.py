"""The other ranks of a mesh: processes that run every step together with rank 0.

Rank 0 decides which step runs next and sends a command to the others, so that all ranks run the
same steps in the same order. Tensors go through the mesh; these pipes carry only commands.
"""

import contextlib
import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from model.errors import CheckpointError, ModelError
from model.mesh import Mesh, join_mesh, leave_mesh
from pipeline.generate import generate
from pipeline.load import load_pipeline
from pipeline.request import Event
from pipeline.settings import PipelineSettings
from server.engine.messages import Job

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Begin:
    """A job is generated from now on."""

    job: Job


@dataclass(frozen=True, slots=True)
class Advance:
    """One step of a job is generated now."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A job is generated no more."""

    job_id: str


Command = Begin | Advance | Drop


class Followers:
    """The processes of all ranks but the first, held by the first."""

    def __init__(self, settings: PipelineSettings) -> None:
        """Start them; each loads its part of the checkpoint by itself."""
        context = multiprocessing.get_context("spawn")
        self._folder = Path(tempfile.mkdtemp(prefix="hyimage-mesh-"))
        self.rendezvous = self._folder / "rendezvous"
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
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

    def send(self, command: Command) -> None:
        """Send a command to every rank.

        Raises:
            OSError: one of them is gone.
        """
        for pipe in self._pipes:
            pipe.send(command)

    @property
    def are_alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def stop(self) -> None:
        """End them: an idle rank ends by itself when its pipe closes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            for end in (process.terminate, process.kill):
                if process.is_alive():
                    end()
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
        yield join_settings_mesh(settings, 0, followers.rendezvous), followers
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
    """Load this rank's part and obey rank 0's commands, until the pipe closes."""
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
                case Begin(job):
                    generating[job.job_id] = generate(pipeline, job.request)
                case Advance(job_id):
                    try:
                        next(generating.get(job_id, iter(())), None)
                    except ModelError:  # rank 0 raises the same one, and reports it
                        generating.pop(job_id, None)
                case Drop(job_id):
                    generating.pop(job_id, None)
