"""The task service: admission, following, polling and details of imageInference tasks.

A task outlives the connection that brought it: `follow` yields its results as they are finished,
`poll` reads them from the store later.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from model.resolution import Size
from pipeline.checkpoint_info import CheckpointInfo
from server.background import Background
from server.engine.protocol import EngineFigures, EngineStatus
from server.process import request_id
from server.runware.envelope import EstimateItem, ResultItem
from server.runware.errors import TaskError
from server.runware.input_texts import InputText
from server.runware.schemas import ImageInference
from server.runware.seeds import image_seeds
from server.settings import Settings
from server.tasks.accepted import AcceptedTask
from server.tasks.admission import (
    Load,
    check_lengths,
    check_limits,
    check_targets,
    check_task,
    conflict,
)
from server.tasks.control import EndStatus, TaskControl
from server.tasks.input_rules import check_input_images, check_queued_bytes, count_input_images
from server.tasks.leases import Leases
from server.tasks.meter import Seconds, add_seconds
from server.tasks.reader import Client, TaskReader
from server.tasks.results import estimate_item, result_item, with_diagnostics
from server.tasks.runner import RunnerServices, TaskRunner
from server.tasks.running import RunningTasks
from server.tasks.store import DuplicateTaskError
from server.tasks.sweeper import Sweeper
from server.tasks.tables import UPLOAD, ImageRow, StoredInput, StoredTask
from server.tasks.usage import check_quota

log = logging.getLogger(__name__)


class TaskService:
    """Admits, follows and looks up tasks, for every transport."""

    def __init__(
        self, settings: Settings, services: RunnerServices, checkpoint: CheckpointInfo
    ) -> None:
        self.checkpoint = checkpoint
        self._settings = settings
        self._services = services
        self._runner = TaskRunner(settings, services, checkpoint)
        self._control = TaskControl(services.store, services.engine, self._runner)
        self.reader = TaskReader(settings, services, self._control, checkpoint.default_steps)
        self._leases = Leases(settings.tasks, services.store)
        self._sweeper = Sweeper(settings.tasks, services.store, services.images, services.inputs)
        self._background = Background()
        self.is_draining = False
        self._stopping = asyncio.Event()

    # --- start and stop ---

    async def open(self) -> None:
        """Continue the tasks that an earlier process accepted and did not finish."""
        await self._services.store.open()
        for stored in await self._leases.take_over():
            log.info("task %s was accepted before a restart; it runs now", stored.row.task_uuid)
            self._runner.start(stored)
        runner = self._runner
        self._background.spawn(
            self._leases.keep(runner.list_progress, runner.start, self._stopping)
        )
        self._background.spawn(self._leases.watch_cancels(runner.cancel, self._stopping))
        self._background.spawn(self._sweeper.run(self._stopping))

    async def close(self) -> None:
        """Stop the engine, then all else; unfinished tasks stay in the store."""
        self.drain()
        self._stopping.set()
        await self._runner.stop()
        await self._background.join()
        await self._leases.give_up()
        self._services.inputs.close()
        await self._services.store.close()

    def drain(self) -> None:
        """Refuse new tasks and report not ready; accepted tasks continue."""
        self.is_draining = True

    @property
    def max_input_images(self) -> int:
        """How many images a task may bring; 0 if the checkpoint or the settings take none."""
        return count_input_images(self.checkpoint, self._settings.worker)

    @property
    def status(self) -> EngineStatus:
        """Whether tasks are accepted now, and the engine's description."""
        if self.is_draining:
            return EngineStatus(is_ready=False, description="the server is stopping")
        return self._services.engine.status

    @property
    def figures(self) -> EngineFigures:
        """What the engine measures of its worker."""
        return self._services.engine.figures

    @property
    def running(self) -> RunningTasks:
        """The tasks that this process has accepted and not ended."""
        return self._runner.running

    @property
    def num_running_tasks(self) -> int:
        return len(self._runner.running)

    # --- tasks ---

    async def admit(self, parameters: ImageInference, sent: dict[str, Any], client: Client) -> str:
        """Store a task, start it, and return the UUID under which it is stored.

        `sent` is the task as the client wrote it.

        Raises:
            TaskError: it cannot be generated, its UUID is taken, or too much is queued.
        """
        try:
            await check_targets(parameters, self._services.egress)
            await self._check_quota(parameters, client.owner)
            size = self._check(parameters, client.owner)
            inputs, sent = await self._services.inputs.accept(
                parameters, sent, size, client.base_url
            )
            if inputs:  # others came meanwhile
                self._check(parameters, client.owner, inputs)
        except TaskError as e:
            self._services.metrics.refusals.labels(e.code).inc()
            raise
        seeds = image_seeds(parameters.seed, parameters.numberResults)
        task = AcceptedTask(
            parameters=parameters,
            sent=sent,
            width_px=None if size is None else size.width_px,
            height_px=None if size is None else size.height_px,
            seeds=seeds,
            image_uuids=tuple(str(uuid.uuid4()) for _ in seeds),
            owner=client.owner,
            base_url=client.base_url,
            request_id=request_id.get(),
            created_at=time.time(),
            inputs=inputs,
        )
        row = task.to_row(self._leases.holder, self._leases.held_until)
        self._runner.reserve(row)
        try:
            await self._services.store.add(row)
        except (DuplicateTaskError, TaskError) as e:
            self._runner.release(row.task_uuid)
            raise (e if isinstance(e, TaskError) else conflict(parameters.taskUUID)) from None
        except asyncio.CancelledError:  # its client hung up; the write may be done all the same
            self._runner.release(row.task_uuid)
            self._background.spawn(self._forget(row.task_uuid))
            raise
        self._runner.start(StoredTask(row, ()))
        return row.task_uuid

    async def estimate(self, parameters: ImageInference, client: Client) -> EstimateItem:
        """Return what a task would cost, without taking its UUID, keeping or generating anything.

        Raises:
            TaskError: it cannot be generated, now or later.
        """
        size = self._check_ever(parameters)
        inputs = await self._services.inputs.read(parameters, client.base_url)
        check_lengths(parameters, self.checkpoint, size, [one.sides_wh for one in inputs])
        pixels = [self._services.inputs.count_pixels(one) for one in inputs]
        price = self._settings.price
        return estimate_item(parameters, size, self.checkpoint.sizes, price, pixels)

    async def follow(
        self, task_uuid: str, client: Client, seconds: Seconds
    ) -> AsyncIterator[ResultItem]:
        """Yield the result items of a task admitted just now, each as it is finished.

        At its end what each of its stages took is added to `seconds`.

        Raises:
            TaskError: the task failed.
        """
        running = self._runner.running[task_uuid]
        task = AcceptedTask.from_row(running.row, self.checkpoint.default_steps)
        outcomes = running.follow()
        while (outcome := await outcomes.get()) is not None:
            if isinstance(outcome, TaskError):
                raise outcome
            item = result_item(task, outcome.row, outcome.encoded, self._settings.price)
            yield with_diagnostics(item, outcome.row, client.has_diagnostics)
        add_seconds(seconds, running.seconds)

    async def cancel(self, task_uuid: str, client: Client) -> EndStatus:
        """Stop a task after its present step; return how it ended.

        Raises:
            TaskError: the task is not known.
        """
        return await self._control.cancel(await self.reader.find(task_uuid, client))

    async def read_upload(self, text: InputText, base_url: str) -> bytes:
        """Return the bytes of an image that a client sends; they are those of an image.

        Raises:
            TaskError: they are not, or they cannot be fetched.
        """
        return (await self._services.inputs.read_all([text], base_url))[0].content

    async def keep_upload(self, image_uuid: str, name: str, content: bytes) -> None:
        """Keep an image that a client sent, as long as images are kept."""
        await self._services.images.save(name, content)
        expires_at = time.time() + self._settings.images.ttl_s
        row = ImageRow(
            image_uuid=image_uuid,
            task_uuid=UPLOAD,
            position=0,
            name=name,
            is_nsfw=None,
            expires_at=expires_at,
        )
        await self._services.store.add_image(row, None)

    async def _forget(self, task_uuid: str) -> None:
        with contextlib.suppress(TaskError):  # the store logs its errors
            await self._services.store.release(task_uuid)

    async def release(self, task_uuid: str) -> None:
        """Delete a failed task whose client will send it again."""
        await self._services.store.release(task_uuid)

    # --- admission ---

    def _check_ever(self, parameters: ImageInference) -> Size | None:
        """Return the size of a task that can run here, None for the model's choice.

        Raises:
            TaskError: it cannot, now or later.
        """
        size = check_task(parameters, self._settings.api, self.checkpoint)
        check_input_images(parameters, self.checkpoint, self._settings.worker)
        if parameters.is_checked:
            self._services.safety.require()
        return size

    def _check(
        self, parameters: ImageInference, owner: str, inputs: Sequence[StoredInput] = ()
    ) -> Size | None:
        """Return the size of a task that can run now, None for the model's choice.

        Raises:
            TaskError: it cannot, or not now.
        """
        if self.is_draining:
            raise TaskError("serviceUnavailable", "The server is stopping; send the task again.")
        size = self._check_ever(parameters)
        running = self._runner.running
        if parameters.taskUUID.lower() in running:
            raise conflict(parameters.taskUUID)
        load = Load(
            num_images=sum(task.num_images for task in running.values()),
            num_of_owner=sum(task.row.owner == owner for task in running.values()),
            room_in_s=running.seconds_until_room,
        )
        check_limits(self._settings.server, parameters.numberResults, owner, load)
        rows = (task.row for task in running.values())
        check_queued_bytes(rows, inputs, self._settings.inputs)
        return size

    async def _check_quota(self, parameters: ImageInference, owner: str) -> None:
        """Refuse a task beyond its key's quota of the day.

        Raises:
            TaskError: it is beyond it, or the usage cannot be read.
        """
        record = self._services.keys.record(owner)
        if record.images_per_day is None:
            return
        daily = await self._services.store.usage(owner)
        own = [task for task in self._runner.running.values() if task.row.owner == owner]
        num_running = sum(task.num_images - task.num_kept for task in own)
        check_quota(record, daily, num_running, parameters.numberResults)
