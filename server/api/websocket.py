"""The WebSocket transport: one socket, many tasks at once, sessions that survive a dropped line.

Source: wire specification, section 2.
"""

import asyncio
import json
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from server.api.auth import Keys
from server.api.dispatch import Caller, answer
from server.api.http import parse_tasks, public_base_url, wants_diagnostics
from server.runware.errors import TaskError
from server.settings import Settings
from server.tasks.results import to_error_object
from server.tasks.service import TaskService

router = APIRouter()

IDLE_S = 120.0
UNDELIVERED_S = 120.0
TRY_AGAIN_LATER = 1013  # RFC 6455's registry of close codes

Frame = dict[str, Any]


@dataclass(slots=True)
class Session:
    """What outlives a socket: who it is, and the frames that nobody has received."""

    session_uuid: str
    owner: str
    socket: WebSocket | None = None
    undelivered: deque[tuple[float, Frame]] = field(default_factory=deque)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    left_at: float = 0.0

    async def send(self, frame: Frame) -> None:
        """Deliver a frame, or keep it for the client's return."""
        async with self.lock:
            if self.socket is None or not await _try_send(self.socket, frame):
                self.undelivered.append((time.monotonic(), frame))

    async def attach(self, socket: WebSocket) -> None:
        """Answer the authentication on a new socket, then hand over what was kept."""
        async with self.lock:
            self.socket = socket
            item = {"taskType": "authentication", "connectionSessionUUID": self.session_uuid}
            await _try_send(socket, {"data": [item]})
            oldest = time.monotonic() - UNDELIVERED_S
            while self.undelivered:
                kept_at, frame = self.undelivered[0]
                if kept_at >= oldest and not await _try_send(socket, frame):
                    return
                self.undelivered.popleft()

    def detach(self, socket: WebSocket) -> None:
        if self.socket is socket:
            self.socket = None
            self.left_at = time.monotonic()


class Sessions:
    """The sessions of this process by UUID; left ones are forgotten after a while."""

    def __init__(self) -> None:
        self.num_sockets = 0
        self._sessions: dict[str, Session] = {}

    def open(self, owner: str, wanted: object) -> Session:
        """Return the session a client had, or a new one."""
        self._forget_left()
        known = self._sessions.get(wanted) if isinstance(wanted, str) else None
        if known is not None and known.owner == owner:
            return known
        session = Session(str(uuid.uuid4()), owner)
        self._sessions[session.session_uuid] = session
        return session

    def _forget_left(self) -> None:
        oldest = time.monotonic() - UNDELIVERED_S
        for session in list(self._sessions.values()):
            if session.socket is None and session.left_at < oldest:
                del self._sessions[session.session_uuid]


@router.websocket("/v1")
@router.websocket("/v1/")
async def serve_socket(socket: WebSocket) -> None:
    """Serve one socket until it closes or falls silent."""
    connection = Connection(socket)
    sessions: Sessions = socket.app.state.sessions
    settings: Settings = socket.app.state.settings
    await socket.accept()
    if sessions.num_sockets >= settings.server.max_connections:
        await socket.close(TRY_AGAIN_LATER)
        return
    sessions.num_sockets += 1
    try:
        while True:
            await connection.receive(await _next_text(socket, connection))
    except (WebSocketDisconnect, KeyError):  # KeyError: a binary frame
        pass
    except TimeoutError:
        await socket.close()
    finally:
        sessions.num_sockets -= 1
        connection.leave()


async def _next_text(socket: WebSocket, connection: "Connection") -> str:
    """Return the next frame; silence is no reason to hang up on someone who waits for images.

    Raises:
        TimeoutError: nothing came for a while, and nothing is being done for this socket.
    """
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                return await socket.receive_text()
        except TimeoutError:
            if not connection.is_waited_for:
                raise


class Connection:
    """One socket: authenticates, then runs the tasks of every frame side by side."""

    def __init__(self, socket: WebSocket) -> None:
        state = socket.app.state
        self._socket = socket
        self._tasks: TaskService = state.tasks
        self._settings: Settings = state.settings
        self._keys: Keys = state.keys
        self._sessions: Sessions = state.sessions
        self._background: set[asyncio.Task[None]] = state.background
        self._session: Session | None = None
        self._num_running = 0

    @property
    def is_waited_for(self) -> bool:
        """Return whether a task that came over this socket is still running."""
        return self._num_running > 0

    def leave(self) -> None:
        if self._session is not None:
            self._session.detach(self._socket)

    async def receive(self, text: str) -> None:
        """Start every task of a frame; authentication is answered before the next is looked at."""
        try:
            bodies = parse_tasks(text)
        except TaskError as e:
            await self._send_error(e, None)
            return
        for body in bodies:
            if isinstance(body, dict) and body.get("taskType") == "authentication":
                await self._authenticate(body)
            elif self._session is None:
                refusal = TaskError(
                    "missingApiKey", "Authenticate first; this task was not run.", "apiKey"
                )
                await self._send_error(refusal, body)
            else:
                task = asyncio.create_task(self._run(body, self._session))
                self._background.add(task)  # a task outlives its socket
                task.add_done_callback(self._background.discard)
                self._num_running += 1
                task.add_done_callback(self._note_end)

    def _note_end(self, _: asyncio.Task[None]) -> None:
        self._num_running -= 1

    async def _authenticate(self, body: dict[str, Any]) -> None:
        key = body.get("apiKey")
        try:
            owner = self._keys.check(key if isinstance(key, str) else None)
        except TaskError as e:
            error = to_error_object(e)
            # Here alone `error` stands beside `errors`: one client waits 15 s without it.
            await _try_send(self._socket, {"errors": [error], "error": error})
            return
        self._session = self._sessions.open(owner, body.get("connectionSessionUUID"))
        await self._session.attach(self._socket)

    async def _run(self, body: object, session: Session) -> None:
        url = self._socket.base_url.replace(
            scheme={"ws": "http", "wss": "https"}[self._socket.url.scheme]
        )
        base_url = public_base_url(self._settings, str(url))
        caller = Caller(
            session.owner,
            base_url,
            repeats_failures=False,
            has_diagnostics=wants_diagnostics(self._socket),
        )
        try:
            async for batch in answer(self._tasks, self._settings, body, caller):
                await session.send({"data": batch})
        except TaskError as e:
            await session.send({"errors": [to_error_object(e, body)]})

    async def _send_error(self, error: TaskError, body: object) -> None:
        await _try_send(self._socket, {"errors": [to_error_object(error, body)]})


async def _try_send(socket: WebSocket, frame: Frame) -> bool:
    """Send a frame; return False if the socket is gone."""
    try:
        await socket.send_text(json.dumps(frame))
    except (RuntimeError, WebSocketDisconnect, OSError):
        return False
    return True
