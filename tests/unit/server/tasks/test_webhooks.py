"""The sender of webhook calls, with a store that fails."""

import asyncio
from pathlib import Path

from server.delivery.egress import Egress
from server.runware.errors import TaskError
from server.settings import EgressSettings
from server.tasks.store import TaskStore
from server.tasks.tables import ImageRow
from server.tasks.webhooks import WebhookSender
from tests.listener import Listener
from tests.waiting import until

IMAGE = ImageRow(
    image_uuid="i", task_uuid="t", position=0, name="i.png", is_nsfw=None, expires_at=1e12
)


class FullStore(TaskStore):
    """One that can be read but not written once a call is made: its disk is full."""

    async def drop_webhook(self, webhook_id: int) -> None:
        raise TaskError("serviceUnavailable", "the disk is full")


def test_a_call_is_not_repeated_at_once_when_its_end_cannot_be_stored(tmp_path: Path) -> None:
    listener = Listener()
    settings = EgressSettings(allowed_networks=("127.0.0.0/8",))

    async def scenario() -> None:
        store, egress = FullStore(f"sqlite:///{tmp_path}/tasks.db"), Egress(settings)
        sender = WebhookSender(settings, store, egress)
        await store.open()
        await store.add_image(IMAGE, sender.new_call(listener.url, "t", 0, "data", {"a": 1}))
        running = asyncio.create_task(sender.run())
        await until(lambda: bool(listener.received))
        await asyncio.sleep(0.5)
        sender.stop()
        await running
        await store.close()
        await egress.close()

    try:
        asyncio.run(asyncio.wait_for(scenario(), 20))
        assert len(listener.received) == 1
    finally:
        listener.close()
