"""Webhooks and uploads: webhook calls from the task store, uploads at once.

A webhook call is stored before it is sent, and deleted when it was answered with 2xx or has failed
often enough; so it survives a restart and is not made again after it succeeded.
"""

import asyncio
import contextlib
import logging
import random
import time
from typing import Any

from server.delivery.egress import Egress, EgressError
from server.delivery.images import media_type
from server.runware.errors import TaskError
from server.settings import EgressSettings
from server.tasks.store import TaskStore
from server.tasks.tables import DueWebhook, Webhook

log = logging.getLogger(__name__)

BATCH = 16
IDLE_S = 30.0
# A call of a server that died is made by another one after this many times its timeout.
CLAIM_TIMEOUTS = 2


class WebhookSender:
    """Sends the webhook calls that are due; one instance per server process."""

    def __init__(
        self, settings: EgressSettings, store: TaskStore, egress: Egress, *, is_shared: bool = False
    ) -> None:
        self._settings = settings
        self._is_shared = is_shared
        self._store = store
        self._egress = egress
        self._wakeup = asyncio.Event()
        self._is_stopping = False

    def new_call(self, url: str, task_uuid: str, position: int, body: dict[str, Any]) -> Webhook:
        """Return the call that posts `body` to `url`; the caller stores it."""
        return Webhook(
            task_uuid=task_uuid,
            position=position,
            url=url,
            body=body,
            num_tries=0,
            next_try_at=time.time(),
        )

    def wake(self) -> None:
        """Send due calls now."""
        self._wakeup.set()

    def stop(self) -> None:
        """Let `run` return after the calls in flight; the others stay in the store."""
        self._is_stopping = True
        self._wakeup.set()

    async def upload(self, url: str, name: str, encoded: bytes) -> None:
        """PUT an image's bytes.

        Raises:
            TaskError: the endpoint did not take them.
        """
        try:
            await self._egress.send("PUT", url, encoded, media_type(name))
        except EgressError as e:
            raise TaskError(
                "uploadFailed", f"The image could not be uploaded: {e}.", "uploadEndpoint"
            ) from None

    async def run(self) -> None:
        """Send webhooks until stopped."""
        while not self._is_stopping:
            due: list[DueWebhook] = []
            with contextlib.suppress(TaskError):  # the store logs its errors
                due = await self._store.list_due_webhooks(time.time(), BATCH)
                await asyncio.gather(*(self._call(row) for row in due))
            if not due:
                await self._sleep()
            self._wakeup.clear()

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(min(IDLE_S, self._settings.webhook_first_delay_s)):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _call(self, row: DueWebhook) -> None:
        if self._is_shared:
            until = time.time() + CLAIM_TIMEOUTS * self._settings.timeout_s
            if not await self._store.claim_webhook(row, until):
                return
        try:
            await self._egress.send_json("POST", row.url, row.body)
        except EgressError as e:
            num_tries = row.num_tries + 1
            if num_tries >= self._settings.webhook_tries or not e.is_worth_retrying:
                log.error(
                    "webhook of task %s given up after %d tries: %s", row.task_uuid, num_tries, e
                )
                await self._store.drop_webhook(row.id)
                return
            delay_s = self._settings.webhook_first_delay_s * 2**row.num_tries
            delay_s *= random.uniform(0.75, 1.25)  # so that many calls do not return together
            log.warning(
                "webhook of task %s failed (%s); again in %.1f s", row.task_uuid, e, delay_s
            )
            await self._store.delay_webhook(row.id, num_tries, time.time() + delay_s)
        else:
            await self._store.drop_webhook(row.id)
