"""The task runner: generates accepted tasks, keeps each image, and ends each task exactly once."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any, assert_never

from pipeline.checkpoint_info import CheckpointInfo
from server.background import Background
from server.delivery.egress import Egress
from server.delivery.images import ImageStore
from server.delivery.safety import SafetyChecker
from server.delivery.uploader import Uploader
from server.engine.messages import (
    JobCancelled,
    JobDone,
    JobFailed,
    JobImage,
    JobPrefilled,
    JobQueued,
    JobStarted,
    JobStep,
    JobText,
)
from server.engine.protocol import Engine
from server.metrics import Metrics
from server.process import request_id
from server.runware.diagnostics import diagnostics_object, list_request_warnings
from server.runware.envelope import to_error_object
from server.runware.errors import TaskError
from server.runware.pricing import image_cost
from server.settings import Settings
from server.tasks.accepted import AcceptedTask
from server.tasks.file_metadata import with_metadata
from server.tasks.input_images import InputImages
from server.tasks.keys import Keys
from server.tasks.meter import TaskMeter
from server.tasks.results import result_item, upload_failure
from server.tasks.running import RunningTask, RunningTasks
from server.tasks.store import TaskStore
from server.tasks.tables import ImageRow, StoredTask, TaskRow, Webhook
from server.tasks.usage import Charge
from server.tasks.webhooks import WebhookSender
from server.tracing import Tracer, incoming

log = logging.getLogger(__name__)

STORE_RETRY_S, MAX_STORE_RETRY_S = 1.0, 30.0
UNSTORED = "the end of task %s could not be stored; again later"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerServices:
    """The parts of a server that a runner uses."""

    engine: Engine
    store: TaskStore
    keys: Keys
    images: ImageStore
    inputs: InputImages
    webhooks: WebhookSender
    uploader: Uploader
    egress: Egress
    safety: SafetyChecker
    metrics: Metrics
    tracer: Tracer


class TaskRunner:
    """Runs tasks on an engine: `run` -> `_generate` -> `_keep` for each image -> `_end`."""

    def __init__(
        self, settings: Settings, services: RunnerServices, checkpoint: CheckpointInfo
    ) -> None:
        self.running = RunningTasks(settings.worker.max_active_jobs)
        self._settings = settings
        self._services = services
        self._checkpoint = checkpoint
        self._background = Background()
        self._stopping = asyncio.Event()

    def reserve(self, row: TaskRow) -> None:
        """Count a task that is about to be stored, so that no burst slips past the limits."""
        self.running[row.task_uuid] = RunningTask(row, len(row.seeds))

    def release(self, task_uuid: str) -> None:
        """Forget a task that could not be stored."""
        del self.running[task_uuid]

    def start(self, stored: StoredTask) -> None:
        """Start to generate the missing images of a stored task."""
        row = stored.row
        running = self.running.setdefault(row.task_uuid, RunningTask(row, len(row.seeds)))
        running.is_cancelled |= bool(row.is_cancelled)
        self._background.spawn(self.run(stored))

    async def cancel(self, task_uuid: str) -> None:
        """Stop a task that runs here after its present step; others are ignored."""
        running = self.running.get(task_uuid)
        if running is not None and not running.is_cancelled:
            running.is_cancelled = True
            await self._services.engine.cancel(task_uuid)

    async def stop(self) -> None:
        """Stop the engine; tasks that are not finished stay in the store for the next start."""
        self._stopping.set()
        await self._services.engine.stop()  # ends every job, and so every coroutine below
        await self._background.join()

    def list_progress(self) -> dict[str, int]:
        """Return the progress of each task that runs here, in percent."""
        return {task_uuid: running.progress for task_uuid, running in self.running.items()}

    async def run(self, stored: StoredTask) -> None:
        """Generate a task and end it, whatever goes wrong on the way."""
        row = stored.row
        request_id.set(row.request_id or "-")
        running = self.running[row.task_uuid]
        trace = self._services.tracer.start("task", incoming.get(), row.created_at, "SERVER")
        meter = TaskMeter(row, self._services.metrics, trace, running.seconds)
        failure: TaskError | None = TaskError("internalServerError", "The task was cut short.")
        try:
            try:
                failure = await self._generate(running, stored, meter)
            except TaskError as e:
                failure = e
            except Exception:  # one task's failure must not leave it without an end
                log.exception("task %s failed", row.task_uuid)
                failure = TaskError(
                    "internalServerError", "The task failed inside the server; its log says why."
                )
            if self._stopping.is_set() and failure is not None:
                running.log.break_off()  # it stays in the store for the next start
                return
            failure = await self._end(row, failure, meter)
            meter.log_end(failure)
        finally:
            meter.end_trace(failure)
            running.publish(failure)
            if not running.log.has_ended:
                running.log.end(row.request, failure)
            self.running.forget(row.task_uuid)

    async def _generate(
        self, running: RunningTask, stored: StoredTask, meter: TaskMeter
    ) -> TaskError | None:
        """Generate and store the missing images; return the failure, or None."""
        task = AcceptedTask.from_row(stored.row, self._checkpoint.default_steps)
        kept = list(stored.images)
        finished = {image.position for image in kept}
        positions = [i for i in range(task.num_images) if i not in finished]
        if not positions:  # the last image was kept, and then the server died
            return upload_failure(kept)
        weight = self._services.keys.record(task.owner).weight
        images = await self._services.inputs.load(task.inputs)
        guidance = self._settings.api.default_guidance
        job = replace(task.to_job(positions, self._settings.cache, guidance, images), weight=weight)
        running.request, running.num_images = job.request, len(positions)
        if running.is_cancelled:
            return TaskError("taskCancelled", "The task was cancelled.")
        async for event in self._services.engine.submit(job):
            meter.note(event)
            match event:
                case JobImage():
                    position = positions[event.image]
                    image = with_metadata(event, task, position, self._settings.images)
                    row = await self._keep(task, position, image, meter)
                    kept.append(row)
                    running.note_image(row, image, self.running.estimates)
                case JobFailed():
                    return TaskError(event.code, event.message)
                case JobCancelled():
                    return TaskError("taskCancelled", "The task was cancelled.")
                case JobDone():
                    return upload_failure(kept)
                case JobQueued() | JobStarted() | JobText() | JobPrefilled() | JobStep():
                    running.note_progress(event, positions, self.running.estimates)
                case _:
                    assert_never(event)
        return TaskError("inferenceError", "The engine left the task without an end.")

    async def _keep(
        self, task: AcceptedTask, position: int, done: JobImage, meter: TaskMeter
    ) -> ImageRow:
        """Store an image, upload it where its task requested, and store the webhook call."""
        services, parameters = self._services, task.parameters
        name = f"{task.image_uuids[position]}.{parameters.outputFormat.lower()}"
        with meter.stage("store"):
            await services.images.save(name, done.encoded)
        upload_fault: str | None = None
        if parameters.uploadEndpoint is not None:
            try:
                with meter.stage("upload"):
                    await services.uploader.upload(
                        parameters.uploadEndpoint, name, done.encoded, meter.trace_headers
                    )
            except TaskError as e:  # the image is there, and the others are generated
                upload_fault = e.message
        is_nsfw = None
        if parameters.is_checked:
            with meter.stage("check"):
                is_nsfw = await services.safety.is_nsfw(done.encoded)
        image = ImageRow(
            image_uuid=task.image_uuids[position],
            task_uuid=task.task_uuid,
            position=position,
            name=name,
            is_nsfw=is_nsfw,
            expires_at=time.time() + (task.url_ttl_s or self._settings.images.ttl_s),
            diagnostics=self._diagnostics(task, done),
            width=done.width_px,
            height=done.height_px,
            upload_fault=upload_fault,
        )
        webhook: Webhook | None = None
        if parameters.webhookURL is not None:
            item = result_item(task, image, done.encoded, self._settings.price)
            webhook = services.webhooks.new_call(
                parameters.webhookURL, task.task_uuid, position, "data", item
            )
            services.webhooks.note_trace(webhook, meter.trace_headers)
        sides, price = (done.width_px, done.height_px), self._settings.price
        cost = image_cost(price, *sides, parameters.steps, task.input_pixels)
        with meter.stage("store"):
            await services.store.add_image(image, webhook, Charge(owner=task.owner, cost=cost))
        if webhook is not None:
            services.webhooks.wake()
        meter.note_stored(done)
        return image

    def _diagnostics(self, task: AcceptedTask, done: JobImage) -> dict[str, Any] | None:
        if done.diagnostics is None:
            return None
        warnings = list_request_warnings(
            task.parameters, self._settings.cache, self._checkpoint.vocabulary
        )
        return diagnostics_object(done.diagnostics, warnings)

    async def _end(
        self, row: TaskRow, failure: TaskError | None, meter: TaskMeter
    ) -> TaskError | None:
        """Store the end of a task; return what its followers receive.

        If the store cannot be reached, the end is stored as soon as it can: otherwise the task
        would stay running for ever, for pollers and for other servers.
        """
        meter.note_end(failure)
        try:
            with meter.stage("store"):
                await self._store_end(row, failure, meter)
        except TaskError as e:  # the store has logged why
            later = e
        except Exception:  # whatever it is, the task must not stay without an end
            log.exception(UNSTORED, row.task_uuid)
            message = "The end of the task is not stored yet; poll it later."
            later = TaskError("internalServerError", message)
        else:
            return failure
        self._background.spawn(self._store_end_later(row, failure, meter))
        return later

    async def _store_end_later(
        self, row: TaskRow, failure: TaskError | None, meter: TaskMeter
    ) -> None:
        delay_s = STORE_RETRY_S
        while not await self._is_stopped_within(delay_s):
            try:
                await self._store_end(row, failure, meter)
            except TaskError:
                log.error(UNSTORED, row.task_uuid)
            except Exception:  # tried again until it is stored
                log.exception(UNSTORED, row.task_uuid)
            else:
                return
            delay_s = min(2 * delay_s, MAX_STORE_RETRY_S)

    async def _store_end(self, row: TaskRow, failure: TaskError | None, meter: TaskMeter) -> None:
        if failure is None:
            await self._services.store.succeed(row.task_uuid)
            return
        error = to_error_object(failure, row.request)
        webhook: Webhook | None = None
        url = row.request.get("webhookURL")
        if isinstance(url, str):
            webhook = self._services.webhooks.new_call(url, row.task_uuid, -1, "errors", error)
            self._services.webhooks.note_trace(webhook, meter.trace_headers)
        await self._services.store.fail(row, error, webhook)
        if webhook is not None:
            self._services.webhooks.wake()

    async def _is_stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False
