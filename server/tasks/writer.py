"""The writer thread of the task store: group commits, many writes in one transaction.

A commit costs the same for one row as for a hundred, so all writes that queue up during one commit
share the next. `run` returns only after the commit that holds the write.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

Result = TypeVar("Result")
Operation = Callable[[Connection], Any]

MAX_BATCH = 256


@dataclass(slots=True)
class _Pending:
    operation: Operation
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: Exception | None = None

    def resolve(self) -> None:
        """Resolve the future, unless it was cancelled."""
        if self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """Runs operations in order, each inside a transaction that it may share with others."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def run(self, operation: Callable[[Connection], Result]) -> Result:
        """Return an operation's result once it is committed.

        Raises:
            Exception: whatever the operation raised; it alone was rolled back.
        """
        loop = asyncio.get_running_loop()
        pending = _Pending(operation, loop.create_future(), loop)
        self._queue.put(pending)
        result: Result = await pending.future
        return result

    async def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            is_last = False
            while len(batch) < MAX_BATCH and not self._queue.empty():
                pending = self._queue.get()
                if pending is None:
                    is_last = True
                    break
                batch.append(pending)
            self._commit(batch)
            _finish(batch)
            if is_last:
                return

    def _commit(self, batch: list[_Pending]) -> None:
        """Run the operations of a batch in one transaction; note their results or errors."""
        try:
            with self._engine.begin() as connection:
                for pending in batch:
                    pending.result = pending.operation(connection)
        except Exception as e:  # noqa: BLE001 -- one write must not end the thread for all
            if len(batch) == 1:
                batch[0].error = e
                return
            for pending in batch:  # one of them is at fault; the others are committed
                self._commit([pending])


def _finish(batch: list[_Pending]) -> None:
    """Resolve the futures of a batch, each in its own loop: one wake-up a loop, not one a write."""

    def resolve(loop: asyncio.AbstractEventLoop) -> None:
        for pending in batch:
            if pending.loop is loop:
                pending.resolve()

    for loop in {pending.loop for pending in batch}:
        loop.call_soon_threadsafe(resolve, loop)
