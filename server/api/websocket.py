"""The WebSocket transport: one socket, many tasks at once.

Source: wire specification, section 2.
"""

import asyncio
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from server.api.dispatch import Caller, run_task
from server.api.frames import BaseUrl, IsDryRun, WantsDiagnostics, parse_tasks
from server.api.sessions import Session, try_send
from server.api.state import AppState, State
from server.runware.envelope import to_error_object
from server.runware.errors import TaskError
from server.tasks.admission import ANYBODY
from server.tasks.reader import Client

router = APIRouter()

# RFC 6455's registry of close codes.
NORMAL, POLICY_VIOLATION, TRY_AGAIN_LATER = 1000, 1008, 1013


@router.websocket("/v1")
@router.websocket("/v1/")
async def serve_socket(
    socket: WebSocket,
    state: State,
    base_url: BaseUrl,
    has_diagnostics: WantsDiagnostics,
    is_dry_run: IsDryRun,
) -> None:
    """Serve one socket until it closes, or nothing came for a while."""
    connection = Connection(socket, state, base_url, has_diagnostics, is_dry_run)
    await socket.accept()
    if state.sessions.num_sockets >= state.settings.server.max_connections:
        await socket.close(TRY_AGAIN_LATER)
        return
    state.sessions.num_sockets += 1
    try:
        while not connection.is_refused:
            await connection.receive(await _next_frame(socket, connection))
        await socket.close(TRY_AGAIN_LATER)
    except WebSocketDisconnect:
        pass
    except TimeoutError:
        await socket.close(NORMAL if connection.is_authenticated else POLICY_VIOLATION)
    finally:
        state.sessions.num_sockets -= 1
        connection.leave()


async def _next_frame(socket: WebSocket, connection: "Connection") -> str | bytes:
    """Return the next frame; a socket that waits for images may be silent for long.

    Raises:
        TimeoutError: nothing came for a while, and no task of this socket is running; or the
            socket has not authenticated in time.
        WebSocketDisconnect: the socket is closed.
    """
    while True:
        try:
            async with asyncio.timeout(connection.patience_s):
                message = await socket.receive()
        except TimeoutError:
            if not connection.is_waited_for:
                raise
            continue
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        text: str | None = message.get("text")
        content: bytes = message.get("bytes") or b""
        return content if text is None else text


class Connection:
    """One socket: authenticates, then runs the tasks of every frame side by side."""

    def __init__(
        self,
        socket: WebSocket,
        state: AppState,
        base_url: str,
        has_diagnostics: bool,
        is_dry_run: bool,
    ) -> None:
        self._socket = socket
        self._state = state
        self._base_url = base_url
        self._has_diagnostics = has_diagnostics
        self._is_dry_run = is_dry_run
        self._session: Session | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._opened_at = time.monotonic()
        self.is_refused = False

    @property
    def is_authenticated(self) -> bool:
        return self._session is not None

    @property
    def patience_s(self) -> float:
        """How long to wait for the next frame; nothing extends the time to authenticate."""
        limits = self._state.settings.server
        if self.is_authenticated:
            return limits.socket_idle_s
        passed_s = time.monotonic() - self._opened_at
        return max(0.0, limits.authentication_timeout_s - passed_s)

    @property
    def is_waited_for(self) -> bool:
        """Return whether a task that came over this socket is still running."""
        return bool(self._running)

    def leave(self) -> None:
        """Detach the session; it outlives the socket, and so do its tasks unless set otherwise."""
        if self._state.settings.server.cancel_on_disconnect == "always":
            for task in self._running:
                task.cancel()
        if self._session is not None:
            self._session.detach(self._socket)
            self._count(self._session.owner, -1)

    async def receive(self, frame: str | bytes) -> None:
        """Start every task of a frame; an authentication is answered before the next task."""
        try:
            bodies = parse_tasks(frame)
        except TaskError as e:
            await self._send_error(e, None)
            return
        for body in bodies:
            if self.is_refused:
                return
            if isinstance(body, dict) and body.get("taskType") == "authentication":
                await self._authenticate(body)
            elif self._session is None:
                refusal = TaskError(
                    "missingApiKey", "Authenticate first; this task was not run.", "apiKey"
                )
                await self._send_error(refusal, body)
            elif await self._is_refused_now(self._session, body):
                return
            else:  # a task outlives its socket
                task = self._state.background.spawn(self._run(body, self._session))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _is_refused_now(self, session: Session, body: object) -> bool:
        """Return whether the session's key was removed or has expired; then the socket ends."""
        try:
            self._state.keys.check_owner(session.owner)
        except TaskError as e:
            self.is_refused = True
            await self._send_error(e, body)
        return self.is_refused

    async def _authenticate(self, body: dict[str, Any]) -> None:
        key = body.get("apiKey")
        try:
            owner = self._state.keys.check(key if isinstance(key, str) else None)
        except TaskError as e:
            # This code alone, also for no key: JS clients reconnect for ever on any other.
            refusal = replace(e, code="invalidApiKey")
            self._state.count_error(refusal)
            error = to_error_object(refusal)
            # Here alone `error` stands beside `errors`: one client waits 15 s without it.
            await try_send(self._socket, {"errors": [error], "error": error})
            return
        if not self._has_room(owner):
            await self._refuse(owner)
            return
        previous = self._session
        session = self._state.sessions.open(owner, body.get("connectionSessionUUID"), previous)
        if previous is not None:
            self._replace(previous, session)
        self._count(owner, 1)
        self._session = session
        await session.attach(self._socket)

    def _replace(self, previous: Session, session: Session) -> None:
        """Leave the session that this socket had; forget it if nothing more will come for it."""
        self._count(previous.owner, -1)
        if previous is session:
            return
        previous.detach(self._socket)
        is_needed = previous.socket or previous.undelivered or self._running
        if not is_needed:
            self._state.sessions.forget(previous)

    def _has_room(self, owner: str) -> bool:
        """Return whether a key may have this socket, too; without keys the limit of all holds."""
        if owner == ANYBODY or (self._session is not None and self._session.owner == owner):
            return True
        limit = self._state.settings.server.max_connections_per_key
        return self._state.sessions.num_sockets_of[owner] < limit

    async def _refuse(self, owner: str) -> None:
        limit = self._state.settings.server.max_connections_per_key
        self.is_refused = True
        message = f"This key has {limit} connections, which is its limit; try again later."
        refusal = TaskError("rateLimitExceeded", message)
        self._state.count_error(refusal)
        error = to_error_object(refusal)
        error["taskType"] = "authentication"
        await try_send(self._socket, {"errors": [error], "error": error})

    def _count(self, owner: str, change: int) -> None:
        counts = self._state.sessions.num_sockets_of
        counts[owner] += change
        if not counts[owner]:
            del counts[owner]

    async def _run(self, body: object, session: Session) -> None:
        client = Client(session.owner, self._base_url, self._has_diagnostics)
        caller = Caller(
            client, repeats_failures=False, is_dry_run=self._is_dry_run, takes_progress=True
        )
        try:
            async for items in run_task(self._state, body, caller):
                await session.send({"data": items})
        except TaskError as e:
            self._state.count_error(e)
            await session.send({"errors": [to_error_object(e, body)]})

    async def _send_error(self, error: TaskError, body: object) -> None:
        self._state.count_error(error)
        await try_send(self._socket, {"errors": [to_error_object(error, body)]})
