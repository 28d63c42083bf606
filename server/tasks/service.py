"""The life of one imageInference task: admit, remember, generate, remember each image, end once.

A task outlives the connection that brought it. Whoever waits for it follows its outcomes; whoever
asks later finds them in the store.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from model.resolution import Size
from server.checkpoint_info import CheckpointInfo
from server.delivery.images import ImageStore
from server.delivery.safety import SafetyChecker
from server.engine.messages import JobCancelled, JobFailed, JobImage, JobStep, JobText
from server.engine.protocol import Engine
from server.metrics import Metrics
from server.runware.cache_options import build_cache_plan
from server.runware.diagnostics import diagnostics_object
from server.runware.errors import TaskError
from server.runware.schemas import ImageInference
from server.runware.seeds import image_seeds
from server.settings import Settings
from server.tasks.admission import check_limits, check_task, conflict, to_job
from server.tasks.leases import Leases
from server.tasks.results import processing_items, result_item, to_error_object
from server.tasks.store import DuplicateTaskError, TaskStore
from server.tasks.tables import FAILED, RUNNING, UPLOAD, ImageRow, StoredTask, TaskRow
from server.tasks.webhooks import WebhookSender

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 5.0


@dataclass(slots=True)
class _Run:
    """A task that is being generated in this process."""

    row: TaskRow
    num_images: int
    progress: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    followers: list["asyncio.Queue[ImageRow | TaskError | None]"] = field(default_factory=list)

    def tell(self, outcome: ImageRow | TaskError | None) -> None:
        """Pass on an image, or the end: a failure, or None for success."""
        for follower in self.followers:
            follower.put_nowait(outcome)


class TaskService:
    """Runs tasks on an engine; knows nothing of HTTP or WebSockets."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: TaskStore,
        images: ImageStore,
        outbox: WebhookSender,
        safety: SafetyChecker,
        metrics: Metrics,
        facts: CheckpointInfo,
    ) -> None:
        self.engine = engine
        self.images = images
        self._settings = settings
        self._store = store
        self._outbox = outbox
        self._safety = safety
        self._metrics = metrics
        self.facts = facts
        self._leases = Leases(settings.tasks, store)
        self._runs: dict[str, _Run] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._stopping = asyncio.Event()

    # --- start and stop ---

    async def open(self) -> None:
        """Take up what an earlier process accepted and did not finish."""
        await self._store.open()
        for stored in await self._leases.take_over():
            log.info("task %s was accepted before a restart; generating it", stored.row.task_uuid)
            self._start(stored)
        self._spawn(self._leases.keep(self._list_progress, self._start, self._stopping))
        self._spawn(self._sweep_for_ever())

    async def close(self) -> None:
        """Stop the engine and then everything else; what is not finished stays in the store."""
        self._is_draining = True
        self._stopping.set()
        await self.engine.stop()  # ends every job, and so every coroutine that generates
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._leases.give_up()
        await self._store.close()

    # --- what requests ask for ---

    async def admit(self, task: ImageInference, owner: str, base_url: str) -> str:
        """Accept a task for good and start it; return its UUID.

        Raises:
            TaskError: it cannot be generated, its UUID is taken, or too much is queued.
        """
        try:
            size = self._check(task, owner)
        except TaskError as e:
            self._metrics.refusals.labels(e.code).inc()
            raise
        seeds = image_seeds(task.seed, task.numberResults)
        request = task.model_dump(mode="json", exclude_unset=True)
        if size is not None:
            request |= {"width": size.width_px, "height": size.height_px}
        row = TaskRow(
            task_uuid=task.taskUUID,
            owner=owner,
            request=request,
            base_url=base_url,
            seeds=[str(seed) for seed in seeds],
            image_uuids=[str(uuid.uuid4()) for _ in seeds],
            status=RUNNING,
            error=None,
            created_at=time.time(),
            holder=self._leases.holder,
            held_until=self._leases.held_until,
        )
        # Counted before the first await, so that no burst of requests slips past the limits.
        self._runs[task.taskUUID] = _Run(row, task.numberResults)
        try:
            await self._store.add(row)
        except (DuplicateTaskError, TaskError) as e:
            del self._runs[task.taskUUID]
            raise (e if isinstance(e, TaskError) else conflict(task.taskUUID)) from None
        self._start(StoredTask(row, ()))
        return task.taskUUID

    async def follow(
        self, task_uuid: str, has_diagnostics: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the result items of a task admitted just now, each as it is finished.

        Raises:
            TaskError: the task failed.
        """
        run = self._runs[task_uuid]
        outcomes: asyncio.Queue[ImageRow | TaskError | None] = asyncio.Queue()
        run.followers.append(outcomes)
        while (outcome := await outcomes.get()) is not None:
            if isinstance(outcome, TaskError):
                raise outcome
            item = await result_item(run.row, outcome, self.images, self._settings)
            yield item | outcome.diagnostics_field(has_diagnostics)

    async def poll(
        self, task_uuid: str, owner: str, has_diagnostics: bool = False
    ) -> list[dict[str, Any]]:
        """Return one item per image of a task: all in the making, or all finished.

        Raises:
            TaskError: the task is not known, or it failed.
        """
        stored = await self._find(task_uuid, owner)
        if stored.row.status == FAILED:
            raise _stored_failure(stored.row)
        if stored.row.status == RUNNING:
            run = self._runs.get(task_uuid)
            progress, texts = (run.progress, run.texts) if run else (stored.row.progress or 0, {})
            return processing_items(stored.row, progress, texts if has_diagnostics else {})
        return [
            {
                **await result_item(stored.row, image, self.images, self._settings),
                "status": "success",
                **image.diagnostics_field(has_diagnostics),
            }
            for image in stored.images
        ]

    async def details(self, task_uuid: str, owner: str) -> dict[str, Any]:
        """Return a task as it was sent and what came of it.

        Raises:
            TaskError: the task is not known.
        """
        stored = await self._find(task_uuid, owner)
        try:
            response: dict[str, Any] = {"data": await self.poll(task_uuid, owner)}
        except TaskError as e:
            response = {"errors": [to_error_object(e, stored.row.request)]}
        return {
            "taskType": "getTaskDetails",
            "taskUUID": task_uuid,
            "request": [stored.row.request],
            "response": response,
        }

    async def keep_upload(self, image_uuid: str, name: str, content: bytes) -> None:
        """Keep an image that a client sent, as long as images are kept."""
        await self.images.save(name, content)
        expires_at = time.time() + self._settings.images.ttl_s
        row = ImageRow(
            image_uuid=image_uuid,
            task_uuid=UPLOAD,
            position=0,
            name=name,
            is_nsfw=None,
            expires_at=expires_at,
        )
        await self._store.add_image(row, None)

    async def release(self, task_uuid: str) -> None:
        """Forget a failed task whose client will send it again."""
        await self._store.release(task_uuid)

    def drain(self) -> None:
        """Refuse new tasks; those accepted go on."""
        self._is_draining = True

    @property
    def num_running_tasks(self) -> int:
        return len(self._runs)

    # --- admission ---

    def _check(self, task: ImageInference, owner: str) -> Size | None:
        """Return the size of a task that can run now, None for the model's choice.

        Raises:
            TaskError: it cannot, or not now.
        """
        if self._is_draining:
            raise TaskError("serviceUnavailable", "The server is stopping; send the task again.")
        size = check_task(task, self._settings.api, self.facts)
        if task.is_checked:
            self._safety.require()
        if task.taskUUID in self._runs:
            raise conflict(task.taskUUID)
        queued = sum(run.num_images for run in self._runs.values())
        own = sum(run.row.owner == owner for run in self._runs.values())
        check_limits(self._settings.server, task.numberResults, queued, owner, own)
        return size

    def _list_progress(self) -> dict[str, int]:
        """Return how far each task is that is generated here, in percent."""
        return {task_uuid: run.progress for task_uuid, run in self._runs.items()}

    async def _find(self, task_uuid: str, owner: str) -> StoredTask:
        stored = await self._store.find(task_uuid)
        if stored is None or stored.row.owner != owner:
            raise TaskError(
                "taskFailedOrNotFound", f"There is no task '{task_uuid[:80]}'.", "taskUUID"
            )
        return stored

    # --- generating ---

    def _start(self, stored: StoredTask) -> None:
        row = stored.row
        self._runs.setdefault(row.task_uuid, _Run(row, len(row.seeds)))
        self._spawn(self._draw(stored))

    async def _draw(self, stored: StoredTask) -> None:
        """Generate what is still missing and end the task exactly once."""
        row, run = stored.row, self._runs[stored.row.task_uuid]
        task = ImageInference.model_validate(row.request)
        positions = _missing_positions(stored)
        outcome: TaskError | None = TaskError("internalServerError", "The task was cut short.")
        try:
            outcome = await self._generate_and_end(task, row, positions)
        finally:  # whatever went wrong, nobody waits for ever
            run.tell(outcome)
            del self._runs[row.task_uuid]

    async def _generate_and_end(
        self, task: ImageInference, row: TaskRow, positions: list[int]
    ) -> TaskError | None:
        """Draw, and note the end in the store; return what went wrong, if anything."""
        try:
            failure = await self._draw_missing(task, row, positions)
        except TaskError as e:
            failure = e
        try:
            # When stopping, a task that is not finished stays in the store for the next start.
            if failure is None or not self._stopping.is_set():
                await self._finish(task, row, failure)
        except TaskError as e:
            failure = e
        return failure

    async def _draw_missing(
        self, task: ImageInference, row: TaskRow, positions: list[int]
    ) -> TaskError | None:
        """Generate and keep the images at these positions; return what went wrong, if anything."""
        run = self._runs[row.task_uuid]
        async for event in self.engine.submit(to_job(task, row, positions, self._settings.cache)):
            if isinstance(event, JobStep):
                self._metrics.steps.inc()
                done = event.image * event.num_steps + event.step
                run.progress = min(99, 100 * done // (event.num_steps * len(positions)))
            elif isinstance(event, JobText):
                run.texts[positions[event.image]] = event.text
            elif isinstance(event, JobImage):
                is_last = event.image == len(positions) - 1
                position = positions[event.image]
                run.tell(await self._keep(task, row, position, event, is_last))
            elif isinstance(event, JobFailed):
                return TaskError(event.code, event.message)
            elif isinstance(event, JobCancelled):
                return TaskError("taskCancelled", "The task was cancelled.")
        return None

    async def _keep(
        self, task: ImageInference, row: TaskRow, position: int, done: JobImage, is_last: bool
    ) -> ImageRow:
        """Store an image, send it where it was asked to go, and note the call that tells of it."""
        name = f"{row.image_uuids[position]}.{task.outputFormat.lower()}"
        await self.images.save(name, done.encoded)
        if task.uploadEndpoint is not None:
            await self._outbox.upload(task.uploadEndpoint, name, done.encoded)
        is_nsfw = await self._safety.is_nsfw(done.encoded) if task.is_checked else None
        ttl_s = task.ttl or self._settings.images.ttl_s
        image = ImageRow(
            image_uuid=row.image_uuids[position],
            task_uuid=row.task_uuid,
            position=position,
            name=name,
            is_nsfw=is_nsfw,
            expires_at=time.time() + ttl_s,
            diagnostics=self._diagnostics(task, done),
            width=done.width_px,
            height=done.height_px,
        )
        webhook = None
        if task.webhookURL is not None:
            item = await result_item(row, image, self.images, self._settings)
            webhook = self._outbox.announce(
                task.webhookURL, row.task_uuid, position, {"data": [item]}
            )
        await self._store.add_image(image, webhook, is_last=is_last)
        self._outbox.wake()
        self._metrics.images.inc()
        return image

    def _diagnostics(self, task: ImageInference, done: JobImage) -> dict[str, Any] | None:
        if done.diagnostics is None:
            return None
        _, warnings = build_cache_plan(task, self._settings.cache)
        return diagnostics_object(done.diagnostics, warnings)

    async def _finish(self, task: ImageInference, row: TaskRow, failure: TaskError | None) -> None:
        if failure is None:
            self._metrics.tasks.labels("success").inc()
            self._metrics.task_seconds.observe(time.time() - row.created_at)
            return
        self._metrics.tasks.labels(failure.code).inc()
        error = to_error_object(failure, row.request)
        webhook = None
        if task.webhookURL is not None:
            body = {"errors": [error]}
            webhook = self._outbox.announce(task.webhookURL, row.task_uuid, -1, body)
        await self._store.fail(row, error, webhook)
        self._outbox.wake()

    # --- housekeeping ---

    async def _sweep_for_ever(self) -> None:
        """Delete images whose time is over and tasks that ended long ago."""
        while not self._stopping.is_set():
            with contextlib.suppress(TaskError):  # next time; stores log their faults
                now = time.time()
                expired = await self._store.list_expired_images(now)
                forgotten = await self._store.purge(self._settings.tasks.retention_s)
                await self.images.delete([*expired, *forgotten])
                if expired:
                    await self._store.note_deleted_images(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_EVERY_S):
                    await self._stopping.wait()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _missing_positions(stored: StoredTask) -> list[int]:
    finished = {image.position for image in stored.images}
    return [position for position in range(len(stored.row.seeds)) if position not in finished]


def _stored_failure(row: TaskRow) -> TaskError:
    known = dict(row.error or {})
    code, message = known.pop("code", "taskFailed"), known.pop("message", "The task failed.")
    return TaskError(code, message, known.pop("parameter", None), {**known, "status": "error"})
