"""One thread that writes to the database, many writes in one transaction.

A commit costs the same for one row as for a hundred, so whatever has queued up while the last one
was on its way goes into the next. A write is answered only after the commit that holds it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

Result = TypeVar("Result")
Operation = Callable[[Connection], Any]

MAX_BATCH = 256


@dataclass(slots=True)
class _Pending:
    operation: Operation
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop

    def answer(self, result: Any, error: Exception | None = None) -> None:
        """Resolve the future in its own loop, unless nobody waits any more."""

        def resolve() -> None:
            if self.future.cancelled():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)

        self.loop.call_soon_threadsafe(resolve)


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
            SQLAlchemyError: the operation failed; it alone was rolled back.
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
            if is_last:
                return

    def _commit(self, batch: list[_Pending]) -> None:
        try:
            with self._engine.begin() as connection:
                results = [pending.operation(connection) for pending in batch]
        except SQLAlchemyError as e:
            if len(batch) == 1:
                batch[0].answer(None, e)
                return
            for pending in batch:  # one of them is at fault; the others must not suffer
                self._commit([pending])
            return
        for pending, result in zip(batch, results, strict=True):
            pending.answer(result)
