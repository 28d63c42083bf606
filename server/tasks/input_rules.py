"""Rules of input images: how many a server takes, and why it takes none."""

from pipeline.checkpoint_info import CheckpointInfo
from pipeline.input_image import MAX_IMAGES
from pipeline.settings import PipelineSettings


def count_input_images(info: CheckpointInfo, worker: PipelineSettings) -> int:
    """Return how many images a task may bring; 0 if the checkpoint or the settings take none."""
    return MAX_IMAGES if info.template == "instruct" and worker.image_inputs else 0
