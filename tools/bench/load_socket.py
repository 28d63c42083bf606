"""The WebSocket of a load run: one connection, many tasks at once, as official clients do it."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

MAX_FRAME_BYTES = 64 << 20
FAILED = "connectionFailed"


@dataclass(slots=True)
class _Waiting:
    """A task of the socket: its end, and when it began."""

    end: "asyncio.Future[str]"
    started_at: float | None = None


@dataclass(slots=True)
class LoadSocket:
    """Connects at the first task, and again when the connection is gone."""

    url: str
    key: str | None
    _socket: ClientConnection | None = None
    _reading: "asyncio.Task[None] | None" = None
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, body: dict[str, Any]) -> tuple[str, float | None]:
        """Send a task; return its error code or "", and when it began if the server said so."""
        task_uuid: str = body["taskUUID"]
        waiting = _Waiting(asyncio.get_running_loop().create_future())
        try:
            socket, refusal = await self._connected()
            if socket is None:
                return refusal, None
            self._waiting[task_uuid] = waiting
            await socket.send(json.dumps([body]))
            return await waiting.end, waiting.started_at
        except (WebSocketException, OSError):
            return FAILED, None
        finally:
            self._waiting.pop(task_uuid, None)

    async def close(self) -> None:
        """Close the connection."""
        if self._reading is not None:
            self._reading.cancel()
        if self._socket is not None:
            with contextlib.suppress(WebSocketException, OSError):
                await self._socket.close()

    async def _connected(self) -> tuple[ClientConnection | None, str]:
        """Return the connection, or None and the code with which the server refused it."""
        async with self._opening:
            if self._socket is not None and self._reading is not None and not self._reading.done():
                return self._socket, ""
            address = "ws" + self.url.removeprefix("http") + "/v1"
            socket = await connect(address, max_size=MAX_FRAME_BYTES, proxy=None)
            login = {"taskType": "authentication", "apiKey": self.key or "any"}
            await socket.send(json.dumps([login]))
            answer = json.loads(await socket.recv())
            if answer.get("errors"):
                await socket.close()
                return None, str(answer["errors"][0].get("code", FAILED))
            self._socket = socket
            self._reading = asyncio.create_task(self._read(socket))
            return socket, ""

    async def _read(self, socket: ClientConnection) -> None:
        """Hand out frames until the connection is gone; then nothing more comes for any task."""
        try:
            async for frame in socket:
                answer = json.loads(frame)
                for item in answer.get("data", []):
                    self._note_item(item)
                for error in answer.get("errors", []):
                    self._end(error.get("taskUUID"), str(error.get("code", "taskFailed")))
        except (WebSocketException, OSError):
            pass
        finally:
            for task_uuid in list(self._waiting):
                self._end(task_uuid, FAILED)

    def _note_item(self, item: dict[str, Any]) -> None:
        waiting = self._waiting.get(item.get("taskUUID", ""))
        if waiting is None:
            return
        if item.get("taskType") == "imageInference":
            self._end(item["taskUUID"], "")
        elif item.get("event") not in (None, "queued") and waiting.started_at is None:
            waiting.started_at = time.perf_counter()

    def _end(self, task_uuid: str | None, code: str) -> None:
        waiting = self._waiting.get(task_uuid or "")
        if waiting is not None and not waiting.end.done():
            waiting.end.set_result(code)
