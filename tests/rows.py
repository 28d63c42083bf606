"""Rows of a job without words before its image."""

from model.resolution import find_size
from model.sequence import ImageSequence
from model.template import Prompt
from pipeline.generate import build_rows
from pipeline.load import Pipeline
from server.engine.messages import Job


def build_job_rows(pipeline: Pipeline, job: Job) -> tuple[ImageSequence, ...]:
    size = find_size(pipeline.sizes, job.width_px or 0, job.height_px or 0)
    return build_rows(pipeline, job, Prompt(text=job.prompt), size)
