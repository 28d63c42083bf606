"""The life of one imageInference task: admit, draw, deliver."""

import base64
import uuid
from typing import Any

from model.errors import ModelError
from model.resolution import Size, find_size
from server.api.schemas import BLANK_PROMPT, ImageInference, parse_image_inference
from server.delivery.images import MEDIA_TYPES, ImageStore
from server.engine.protocol import Engine
from server.errors import TaskError
from server.messages import ImageDone, Job, JobCancelled, JobFailed
from server.settings import Settings
from server.tasks.seeds import image_seeds


class TaskService:
    """Runs tasks on an engine; knows nothing of HTTP."""

    def __init__(
        self, settings: Settings, engine: Engine, images: ImageStore, sizes: tuple[Size, ...]
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._images = images
        self._sizes = sizes
        self._num_queued_images = 0

    @property
    def engine(self) -> Engine:
        return self._engine

    async def run(self, raw: dict[str, Any], base_url: str) -> list[dict[str, Any]]:
        """Draw the pictures of one task and return its result items, in the order of their seeds.

        Raises:
            TaskError: the task was refused, or it failed.
        """
        task = parse_image_inference(raw)
        job = self._admit(task)
        self._num_queued_images += task.numberResults
        try:
            items = []
            async for event in self._engine.submit(job):
                if isinstance(event, JobFailed):
                    raise TaskError(event.code, event.message)
                if isinstance(event, JobCancelled):
                    raise TaskError("taskCancelled", "The task was cancelled.")
                if isinstance(event, ImageDone):
                    items.append(await self._deliver(task, event, base_url))
            return items
        finally:
            self._num_queued_images -= task.numberResults

    def _admit(self, task: ImageInference) -> Job:
        """Return the job for a task.

        Raises:
            TaskError: the model or size is not served, or too much is queued already.
        """
        if task.model != self._settings.api.model:
            served = self._settings.api.model
            raise TaskError(
                "invalidModel",
                f"Invalid value for 'model' parameter. It must be '{served}'. "
                f"Got '{task.model[:80]}'.",
                "model",
                {"allowedValues": [served]},
            )
        size = self._find_size(task)
        limit = self._settings.server.max_queued_images
        if self._num_queued_images + task.numberResults > limit:
            raise TaskError(
                "rateLimitExceeded",
                f"{self._num_queued_images} pictures are queued and {limit} is the limit; "
                "try again later.",
            )
        negative = task.negativePrompt
        return Job(
            job_id=str(uuid.uuid4()),
            prompt="" if task.positivePrompt == BLANK_PROMPT else task.positivePrompt,
            negative_prompt=None if negative == BLANK_PROMPT else negative,
            width_px=size.width_px,
            height_px=size.height_px,
            num_steps=task.steps,
            guidance=task.CFGScale,
            seeds=image_seeds(task.seed, task.numberResults),
            image_format=task.outputFormat,
            quality=task.outputQuality,
        )

    def _find_size(self, task: ImageInference) -> Size:
        width, height = task.width, task.height
        if (width is None) != (height is None):
            missing = "width" if width is None else "height"
            raise TaskError(
                f"missing{missing.capitalize()}",
                "The parameters 'width' and 'height' must be used together; "
                f"'{missing}' is missing.",
                missing,
            )
        if width is None or height is None:
            width, height = map(int, self._settings.api.default_size.split("x"))
        try:
            return find_size(self._sizes, width, height)
        except ModelError as e:
            allowed = [str(size) for size in self._sizes]
            raise TaskError(
                e.code,
                "Unsupported use of width/height parameters. The specified dimensions are not "
                f"supported for the selected model: {e}. "
                f"Supported values are: {', '.join(map(repr, allowed))}.",
                ["width", "height"],
                {"allowedValues": allowed},
            ) from None

    async def _deliver(
        self, task: ImageInference, done: ImageDone, base_url: str
    ) -> dict[str, Any]:
        """Return the result item of one picture, in every form asked for."""
        extension = task.outputFormat.lower()
        image_uuid = str(uuid.uuid4())
        item: dict[str, Any] = {
            "taskType": task.taskType,
            "taskUUID": task.taskUUID,
            "imageUUID": image_uuid,
            "seed": done.seed,
        }
        encoded = base64.b64encode(done.encoded).decode("ascii")
        for output_type in task.outputType:
            if output_type == "URL":
                name = f"{image_uuid}.{extension}"
                await self._images.save(name, done.encoded)
                item["imageURL"] = f"{base_url}/images/{name}"
            elif output_type == "base64Data":
                item["imageBase64Data"] = encoded
            else:
                item["imageDataURI"] = f"data:{MEDIA_TYPES[extension]};base64,{encoded}"
        return item
