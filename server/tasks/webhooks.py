"""Webhooks: the sender of webhook calls from the task store.

A webhook call is stored before it is sent, and deleted when it was answered with 2xx or has failed
often enough; so it survives a restart and is not made again after it succeeded.
"""

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

from server.delivery.backoff import backoff_s
from server.delivery.egress import Egress, EgressError, OutgoingRequest
from server.metrics import Metrics
from server.runware.errors import TaskError
from server.settings import EgressSettings
from server.tasks.store import TaskStore
from server.tasks.tables import DueWebhook, Webhook
from server.tracing import Headers, Trace, Tracer

log = logging.getLogger(__name__)

Outcome = Literal["answered", "failed"]

BATCH = 16
MAX_TRACES = 4096  # of calls that are not made yet
# How often calls are looked for that another server, or an earlier process, left.
IDLE_S = 2.0
# A call of a server that died is made by another one after this many times its timeout.
CLAIM_TIMEOUTS = 2


class WebhookSender:
    """Sends the webhook calls that are due; one instance per server process."""

    def __init__(
        self,
        settings: EgressSettings,
        store: TaskStore,
        egress: Egress,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._tracer = tracer or Tracer()
        self._traces: OrderedDict[tuple[str, int], Headers] = OrderedDict()
        self._is_shared = is_shared
        self._store = store
        self._egress = egress
        self._wakeup = asyncio.Event()
        self._is_stopping = False

    def new_call(
        self,
        url: str,
        task_uuid: str,
        position: int,
        kind: Literal["data", "errors"],
        item: Mapping[str, Any],
    ) -> Webhook:
        """Return the call that posts an item or an error to `url`; the caller stores it."""
        is_flat = self._settings.webhook_body == "flat"
        body: dict[str, Any] = dict(item) if is_flat else {kind: [item]}
        return Webhook(
            task_uuid=task_uuid,
            position=position,
            url=url,
            body=body,
            num_tries=0,
            next_try_at=time.time(),
        )

    def note_trace(self, call: Webhook, headers: Headers) -> None:
        """Let a call continue a trace; one that another process makes begins a trace of its own."""
        if headers:
            self._traces[call.task_uuid, call.position] = headers
        while len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)

    def wake(self) -> None:
        """Send due calls now."""
        self._wakeup.set()

    def stop(self) -> None:
        """Let `run` return after the calls in flight; the others stay in the store."""
        self._is_stopping = True
        self._wakeup.set()

    async def run(self) -> None:
        """Send webhooks until stopped."""
        while not self._is_stopping:
            if not await self._send_due():
                await self._sleep()
            self._wakeup.clear()

    async def _send_due(self) -> bool:
        """Make the calls that are due; return whether there may be more of them.

        With a store that does not take what became of a call there are none for a while: it would
        be made again at once, and again.
        """
        try:
            due = await self._store.list_due_webhooks(time.time(), BATCH)
        except TaskError:  # the store logs its errors
            return False
        ends = await asyncio.gather(*map(self._call, due), return_exceptions=True)
        for end in ends:
            if end is not None and not isinstance(end, TaskError):
                raise end
        return bool(due) and not any(ends)

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(IDLE_S):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _call(self, row: DueWebhook) -> None:
        if self._is_shared:
            until = time.time() + CLAIM_TIMEOUTS * self._settings.webhook_timeout_s
            if not await self._store.claim_webhook(row, until):
                return
        started = time.monotonic()
        parent = self._traces.get((row.task_uuid, row.position), {})
        trace = self._tracer.start("webhook", parent, kind="CLIENT")
        try:
            request = _to_request(row, trace.headers)
            await self._egress.send(request, self._settings.webhook_timeout_s)
        except EgressError as e:
            self._note_try("failed", started, trace)
            num_tries = row.num_tries + 1
            if num_tries >= self._settings.webhook_tries or not e.is_worth_retrying:
                log.error(
                    "webhook of task %s given up after %d tries: %s", row.task_uuid, num_tries, e
                )
                self._metrics.webhooks_given_up.inc()
                await self._drop(row)
                return
            delay_s = backoff_s(num_tries)
            log.warning(
                "webhook of task %s failed (%s); again in %.1f s", row.task_uuid, e, delay_s
            )
            await self._store.delay_webhook(row.id, num_tries, time.time() + delay_s)
            asyncio.get_running_loop().call_later(delay_s, self.wake)
        else:
            self._note_try("answered", started, trace)
            await self._drop(row)

    async def _drop(self, row: DueWebhook) -> None:
        self._traces.pop((row.task_uuid, row.position), None)
        await self._store.drop_webhook(row.id)

    def _note_try(self, outcome: Outcome, started: float, trace: Trace) -> None:
        trace.end(None if outcome == "answered" else outcome)
        self._metrics.webhook_tries.labels(outcome).inc()
        self._metrics.stage_seconds.labels("webhook").observe(time.monotonic() - started)


def _to_request(row: DueWebhook, headers: Headers) -> OutgoingRequest:
    return OutgoingRequest(
        method="POST",
        url=row.url,
        body=json.dumps(row.body).encode(),
        content_type="application/json",
        headers=dict(headers),
    )
