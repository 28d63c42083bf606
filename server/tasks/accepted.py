"""An accepted task: everything that admission fixed, so that it can be generated at any time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from server.engine.messages import Job
from server.runware.errors import TaskError
from server.runware.guidance_options import GuidancePreset
from server.runware.image_request import to_image_request
from server.runware.schemas import LONG_PROMPTS, ImageInference
from server.runware.validation import with_default_steps
from server.settings import CacheSettings
from server.tasks.tables import RUNNING, StoredInput, TaskRow


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedTask:
    """One admitted task. Without a size the model chooses it.

    Seeds and image UUIDs are fixed, one per image: whichever server generates the task, and
    however often it begins again, the images are the same.
    """

    parameters: ImageInference
    sent: dict[str, Any]  # as the client wrote it, but for the bytes of its input images
    width_px: int | None
    height_px: int | None
    seeds: tuple[int, ...]
    image_uuids: tuple[str, ...]
    owner: str
    base_url: str
    request_id: str
    created_at: float
    inputs: tuple[StoredInput, ...] = ()

    @property
    def task_uuid(self) -> str:
        """The UUID in lower case: its case means nothing. Results have the spelling of the task."""
        return self.parameters.taskUUID.lower()

    @property
    def url_ttl_s(self) -> int | None:
        """How long the task wants its URLs to work; `ttl` means nothing for other forms."""
        return self.parameters.ttl if "URL" in self.parameters.outputType else None

    @property
    def input_pixels(self) -> list[int]:
        return [one.pixels for one in self.inputs]

    @property
    def num_images(self) -> int:
        return len(self.seeds)

    def to_row(self, holder: str, held_until: float | None) -> TaskRow:
        """Return the row that stores this task, running on a server."""
        return TaskRow(
            task_uuid=self.task_uuid,
            owner=self.owner,
            request=self.sent,
            base_url=self.base_url,
            seeds=[str(seed) for seed in self.seeds],
            image_uuids=list(self.image_uuids),
            status=RUNNING,
            error=None,
            created_at=self.created_at,
            holder=holder,
            held_until=held_until,
            width=self.width_px,
            height=self.height_px,
            request_id=self.request_id,
            inputs=[asdict(one) for one in self.inputs] or None,
        )

    @classmethod
    def from_row(cls, row: TaskRow, default_steps: int | None) -> "AcceptedTask":
        """Return a stored task; `default_steps` are the checkpoint's, as at admission.

        Raises:
            TaskError: an older version of this server accepted what this one does not understand.
        """
        try:
            parameters = ImageInference.model_validate(
                with_default_steps(row.request, default_steps), context={LONG_PROMPTS: True}
            )
        except ValidationError:
            raise TaskError(
                "internalServerError",
                "Another version of this server accepted the task; send it again under a new UUID.",
            ) from None
        return cls(
            parameters=parameters,
            sent=row.request,
            width_px=row.width or parameters.width,
            height_px=row.height or parameters.height,
            seeds=tuple(int(seed) for seed in row.seeds),
            image_uuids=tuple(row.image_uuids),
            owner=row.owner,
            base_url=row.base_url,
            request_id=row.request_id or "",
            created_at=row.created_at,
            inputs=row.stored_inputs,
        )

    def to_job(
        self,
        positions: Sequence[int],
        cache: CacheSettings,
        default_guidance: GuidancePreset = "plain",
        images: Sequence[bytes] = (),
    ) -> Job:
        """Return the job that generates the images at these positions from the input images."""
        parameters, width_px, height_px = self.parameters, self.width_px, self.height_px
        size_px = None if width_px is None or height_px is None else (width_px, height_px)
        seeds = [self.seeds[position] for position in positions]
        return Job(
            job_id=self.task_uuid,
            request=to_image_request(parameters, size_px, seeds, cache, default_guidance, images),
            image_format=parameters.outputFormat,
            quality=parameters.outputQuality,
            request_id=self.request_id,
            owner=self.owner,
            priority=parameters.hunyuan.priority,
            has_previews=parameters.hunyuan.previews,
        )
