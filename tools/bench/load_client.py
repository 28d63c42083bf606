"""A client for load: sends one task by any transport, and notes when it began and ended."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tools.api_client import base_url, key_headers
from tools.bench.load_plan import LoadPlan, PlannedTask, task_body
from tools.bench.load_socket import LoadSocket

OK = ""  # the code of a task that succeeded
ASK_AGAIN_S = 0.02  # for the events of a task that is being admitted
GRACE_S = 1.0  # for the event that says when an ended task began
CANCELS_AT_ONCE = 8

# Events that a task sends once it runs.
STARTS = frozenset({"started", "text", "step", "preview", "image"})
ENDS = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended: its error code or "", and when it began and ended (perf_counter)."""

    code: str
    started_at: float | None
    ended_at: float


class LoadClient:
    """Connections to one server. No limit but the system's holds tasks back."""

    def __init__(self, url: str, key: str | None, model: str, plan: LoadPlan) -> None:
        self._model = model
        self._plan = plan
        self._unfinished: set[str] = set()
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(
            base_url=base_url(url),
            headers=key_headers(key),
            limits=unlimited,
            timeout=plan.timeout_s,
            trust_env=False,
        )
        self._socket = LoadSocket(base_url(url), key)

    async def close(self) -> None:
        """Cancel what has not ended, and close the connections."""
        await self.cancel_unfinished()
        await self._socket.close()
        await self._http.aclose()

    async def cancel_unfinished(self) -> None:
        """Cancel the tasks that nobody waits for, so that they do not burden what follows."""
        gate = asyncio.Semaphore(CANCELS_AT_ONCE)

        async def cancel(task_uuid: str) -> None:
            async with gate:
                with contextlib.suppress(httpx.HTTPError):
                    await self._http.delete(f"/v1/tasks/{task_uuid}")

        unfinished, self._unfinished = self._unfinished, set()
        await asyncio.gather(*map(cancel, unfinished))

    async def send(self, task: PlannedTask) -> Outcome:
        """Send a task, wait for its end, and return how it went."""
        task_uuid = str(uuid.uuid4())
        body = task_body(task, self._model, self._plan.mix.guidance, task_uuid)
        ways: dict[str, Callable[[dict[str, Any]], Awaitable[tuple[str, float | None]]]] = {
            "sync": self._send_sync,
            "async": self._send_async,
            "websocket": self._send_socket,
        }
        self._unfinished.add(task_uuid)
        started_at: float | None = None
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                code, started_at = await ways[task.transport](body)
        except (TimeoutError, httpx.TimeoutException):
            code = "timeout"
        except (httpx.HTTPError, OSError):
            code = "connectionFailed"
        ended_at = time.perf_counter()
        if code != "timeout":
            self._unfinished.discard(task_uuid)
        return Outcome(code, None if started_at is None else min(started_at, ended_at), ended_at)

    async def _send_sync(self, body: dict[str, Any]) -> tuple[str, float | None]:
        watch = self._watch(body["taskUUID"])
        try:
            code = code_of(await self._http.post("/v1", json=[body]))
            return code, await _result_of(watch, code)
        finally:
            _drop(watch)

    async def _send_async(self, body: dict[str, Any]) -> tuple[str, float | None]:
        body = {**body, "deliveryMethod": "async"}
        code = code_of(await self._http.post("/v1", json=[body]))
        if code != OK:
            return code, None
        watch = self._watch(body["taskUUID"])
        poll = {"taskType": "getResponse", "taskUUID": body["taskUUID"]}
        try:
            while True:
                await asyncio.sleep(self._plan.poll_every_s)
                response = await self._http.post("/v1", json=[poll])
                code = code_of(response)
                if code != OK or _is_finished(response):
                    return code, await _result_of(watch, code)
        finally:
            _drop(watch)

    async def _send_socket(self, body: dict[str, Any]) -> tuple[str, float | None]:
        if self._plan.has_queue_wait:
            body = {**body, "reportProgress": True}
        return await self._socket.send(body)

    def _watch(self, task_uuid: str) -> "asyncio.Task[float | None] | None":
        """Return a task that finds out when this one begins, if that is wanted."""
        if not self._plan.has_queue_wait:
            return None
        return asyncio.create_task(self._wait_for_start(task_uuid))

    async def _wait_for_start(self, task_uuid: str) -> float | None:
        """Return when a task began, None if its events do not say so."""
        while True:
            async with self._http.stream("GET", f"/v1/tasks/{task_uuid}/events") as response:
                if response.is_success:
                    return await _first_start(response)
                if response.status_code != 404:
                    return None
            await asyncio.sleep(ASK_AGAIN_S)


def code_of(response: httpx.Response) -> str:
    """Return the code of the first error in an answer, "" if there is none."""
    try:
        answer = response.json()
        errors = answer.get("errors")
    except (ValueError, AttributeError):
        return f"http{response.status_code}"
    if errors:
        return str(errors[0].get("code", f"http{response.status_code}"))
    return OK if response.is_success else f"http{response.status_code}"


def _is_finished(response: httpx.Response) -> bool:
    items = response.json().get("data", [])
    return bool(items) and all(item.get("status") == "success" for item in items)


async def _first_start(response: httpx.Response) -> float | None:
    async for line in response.aiter_lines():
        kind = line.removeprefix("event: ") if line.startswith("event: ") else ""
        if kind in STARTS:
            return time.perf_counter()
        if kind in ENDS:
            return None
    return None


async def _result_of(watch: "asyncio.Task[float | None] | None", code: str) -> float | None:
    """Return when a task that has ended began; a refused one never did."""
    if watch is None or code != OK:
        return None
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(GRACE_S):
            return await watch
    return None


def _drop(watch: "asyncio.Task[float | None] | None") -> None:
    """End a watch, and take its exception, if it has one."""
    if watch is not None and not watch.cancel() and not watch.cancelled():
        watch.exception()
