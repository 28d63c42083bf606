"""WebSocket sessions: they outlive their socket, and keep the frames that it could not take."""

import asyncio
import json
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field

from fastapi import WebSocket, WebSocketDisconnect

from server.runware.envelope import Envelope

UNDELIVERED_S = 120.0


@dataclass(slots=True)
class Session:
    """A client's session: its owner, its present socket, and frames that no socket has taken."""

    session_uuid: str
    owner: str
    socket: WebSocket | None = None
    undelivered: deque[tuple[float, Envelope]] = field(default_factory=deque)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    left_at: float = 0.0

    async def send(self, frame: Envelope) -> None:
        """Deliver a frame, or keep it for the client's return."""
        async with self.lock:
            if self.socket is None or not await try_send(self.socket, frame):
                self.undelivered.append((time.monotonic(), frame))

    async def attach(self, socket: WebSocket) -> None:
        """Answer the authentication on a new socket, then deliver the frames that were kept."""
        async with self.lock:
            self.socket = socket
            item = {"taskType": "authentication", "connectionSessionUUID": self.session_uuid}
            await try_send(socket, {"data": [item]})
            oldest = time.monotonic() - UNDELIVERED_S
            while self.undelivered:
                kept_at, frame = self.undelivered[0]
                if kept_at >= oldest and not await try_send(socket, frame):
                    return
                self.undelivered.popleft()

    def detach(self, socket: WebSocket) -> None:
        """Note that a socket is gone, unless another one has replaced it."""
        if self.socket is socket:
            self.socket = None
            self.left_at = time.monotonic()


class Sessions:
    """The sessions of this process by UUID; those without a socket are forgotten after a while."""

    def __init__(self) -> None:
        self.num_sockets = 0
        self.num_sockets_of: Counter[str] = Counter()  # by owner; those that have authenticated
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, owner: str, session_uuid: object, present: Session | None = None) -> Session:
        """Return the session that a client names, else its present one, else a new one.

        A socket that authenticates again thus keeps its session, and none is left behind.
        """
        self._forget_left()
        known = self._sessions.get(session_uuid) if isinstance(session_uuid, str) else None
        for session in (known, present):
            if session is not None and session.owner == owner:
                return session
        session = Session(str(uuid.uuid4()), owner)
        self._sessions[session.session_uuid] = session
        return session

    def forget(self, session: Session) -> None:
        """Forget a session to which nothing will be delivered any more."""
        self._sessions.pop(session.session_uuid, None)

    def _forget_left(self) -> None:
        oldest = time.monotonic() - UNDELIVERED_S
        for session in list(self._sessions.values()):
            if session.socket is None and session.left_at < oldest:
                del self._sessions[session.session_uuid]


async def try_send(socket: WebSocket, frame: Envelope) -> bool:
    """Send a frame; return False if the socket is gone."""
    try:
        await socket.send_text(json.dumps(frame))
    except (RuntimeError, WebSocketDisconnect, OSError):
        return False
    return True
