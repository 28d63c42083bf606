"""Rows of a request without a rewrite."""

from model.resolution import find_size
from model.sequence import ImageSequence
from model.template import Prompt
from pipeline.load import Pipeline
from pipeline.request import ImageRequest


def request_rows(pipeline: Pipeline, request: ImageRequest) -> tuple[ImageSequence, ...]:
    size = find_size(pipeline.sizes, request.width_px or 0, request.height_px or 0)
    prompt = Prompt(text=request.prompt)
    return pipeline.rows(prompt, request.negative_prompt, size, request.guidance)
