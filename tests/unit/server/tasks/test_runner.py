"""The task runner: an end that could not be stored is stored later, and is no success till then."""

import asyncio
import time
import uuid
from pathlib import Path

from pipeline.checkpoint_info import read_checkpoint_info
from server.delivery.egress import Egress
from server.delivery.images import ImageStore
from server.delivery.safety import SafetyChecker
from server.delivery.uploader import Uploader
from server.metrics import Metrics
from server.runware.errors import TaskError
from server.runware.validation import parse_image_inference
from server.settings import Settings
from server.tasks.accepted import AcceptedTask
from server.tasks.input_images import InputImages
from server.tasks.keys import Keys
from server.tasks.runner import RunnerServices, TaskRunner
from server.tasks.store import TaskStore
from server.tasks.tables import SUCCESS, StoredTask
from server.tasks.webhooks import WebhookSender
from server.tracing import Tracer
from tests.contract.conftest import FakeEngine, make_task
from tests.waiting import until

TIMEOUT_S = 20.0


class FaultyStore(TaskStore):
    """One whose first end fails in a way that no database does."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.num_faults = 1

    async def succeed(self, task_uuid: str) -> None:
        if self.num_faults:
            self.num_faults -= 1
            raise KeyError("a bug of the store")
        await super().succeed(task_uuid)


def accepted_task() -> AcceptedTask:
    task = make_task()
    return AcceptedTask(
        parameters=parse_image_inference(task),
        sent=task,
        width_px=1024,
        height_px=1024,
        seeds=(7,),
        image_uuids=(str(uuid.uuid4()),),
        owner="anybody",
        base_url="http://example.test",
        request_id="r",
        created_at=time.time(),
    )


def test_an_end_that_a_bug_kept_from_the_store_is_no_success_and_is_stored_later(
    tmp_path: Path,
) -> None:
    settings, store = Settings(), FaultyStore(f"sqlite:///{tmp_path}/tasks.db")
    checkpoint = read_checkpoint_info(Path(settings.worker.checkpoint))

    async def run() -> None:
        egress = Egress(settings.egress)
        images = ImageStore(str(tmp_path / "images"))
        services = RunnerServices(
            engine=FakeEngine(),
            store=store,
            keys=Keys({}),
            images=images,
            inputs=InputImages(settings, store, images, egress, checkpoint),
            webhooks=WebhookSender(settings.egress, store, egress),
            uploader=Uploader(settings.egress, egress),
            egress=egress,
            safety=SafetyChecker(None),
            metrics=Metrics(),
            tracer=Tracer(),
        )
        runner = TaskRunner(settings, services, checkpoint)
        await store.open()
        row = accepted_task().to_row("holder", None)
        await store.add(row)
        runner.reserve(row)
        outcomes = runner.running[row.task_uuid].follow()
        runner.start(StoredTask(row, ()))
        await outcomes.get()  # the image
        end = await outcomes.get()
        assert isinstance(end, TaskError)
        assert end.code == "internalServerError"

        async def is_stored() -> bool:
            stored = await store.find(row.task_uuid)
            return stored is not None and stored.row.status == SUCCESS

        await until(is_stored)
        await runner.stop()
        await store.close()
        await egress.close()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT_S))
