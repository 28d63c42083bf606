"""The worker process: loads the checkpoint, then runs jobs until the server is gone."""

import logging
from multiprocessing.connection import Connection

from model.errors import ModelError
from pipeline.load import Pipeline, load_pipeline
from pipeline.ranks import end_with_parent, settings_of_rank, started_mesh
from pipeline.settings import PipelineSettings
from server.engine.messages import WorkerFailed, WorkerReady
from server.import_guard import check_imports
from server.worker.memory import budget_of
from server.worker.scheduler import StepScheduler

log = logging.getLogger(__name__)

TINY = 10**9  # parameters; the real checkpoint has 83 times as many


def run(jobs: Connection, control: Connection, settings: PipelineSettings) -> None:
    """Load the checkpoint and run jobs until the server closes the pipe or dies."""
    end_with_parent()  # a load takes minutes, and the next server's worker needs the memory
    check_imports()
    with started_mesh(settings) as (mesh, followers):
        try:
            pipeline = load_pipeline(settings_of_rank(settings, 0), mesh=mesh)
            if followers is not None:
                followers.wait_until_loaded()
        except ModelError as e:
            jobs.send(WorkerFailed(code=e.code, message=str(e)))
            return
        budget = budget_of(pipeline, settings)
        jobs.send(WorkerReady(description=describe(pipeline, settings)))
        try:
            StepScheduler(
                pipeline, (jobs, control), settings.max_active_jobs, budget, followers
            ).run()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            log.info("the server, or a rank, is gone; the worker ends")


def describe(pipeline: Pipeline, settings: PipelineSettings) -> str:
    """Return one line about the checkpoint, precision and device of this worker."""
    num_parameters = sum(p.numel() for p in pipeline.transformer.parameters())
    ranks = f", rank 0 of {settings.num_ranks}" if settings.num_ranks > 1 else ""
    weights = "" if pipeline.scheme is None else f", {pipeline.scheme} weights"
    what = "" if num_parameters > TINY else "the tiny stand-in, not HunyuanImage-3.0 itself: "
    return (
        f"{what}{settings.checkpoint} ({num_parameters / 1e6:.1f} M parameters, "
        f"{settings.weights_dtype}{weights}, {settings.device}{ranks})"
    )
