"""The table of input images on SQLite, and on PostgreSQL where one is installed."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from typing import Any

from server.tasks.input_table import InputTable
from server.tasks.store import TaskStore
from server.tasks.tables import FOREVER, UPLOAD, StoredInput
from tests.system.test_store import IMAGE, TASK

NOW, SOON, LATER = 100.0, 110.0, 1000.0


def with_table(
    url: str, scenario: Callable[[TaskStore, InputTable], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        store = TaskStore(url)
        await store.open()
        try:
            await scenario(store, InputTable(store))
        finally:
            await store.close()

    asyncio.run(run())


def test_bytes_are_found_by_others_only_while_they_are_whole(url: str) -> None:
    async def scenario(_: TaskStore, table: InputTable) -> None:
        assert await table.find_or_reserve("digest", "first", NOW, SOON) == "first"
        assert await table.find_or_reserve("digest", "second", NOW, SOON) == "second"
        await table.complete("first", "digest")
        assert await table.find_or_reserve("digest", "third", NOW, LATER) == "first"
        assert await table.take_expired(SOON) == ["second"]  # the first is kept longer now
        assert sorted(await table.take_expired(LATER)) == ["first", "second"]
        assert await table.find_or_reserve("digest", "fourth", NOW, SOON) == "fourth"
        await table.forget(["first", "second"])
        assert await table.take_expired(LATER) == ["fourth"]

    with_table(url, scenario)


def test_bytes_of_a_running_task_are_kept_until_it_has_ended(url: str) -> None:
    async def scenario(store: TaskStore, table: InputTable) -> None:
        for name in ("needed", "other"):
            await table.find_or_reserve(name, name, NOW, SOON)
            await table.complete(name, name)
        one = StoredInput(parameter="seedImage", name="needed", size_bytes=5, pixels=7)
        await store.add(replace(TASK, inputs=[asdict(one)]))
        await store.add(replace(TASK, task_uuid="t2"))
        stored = await store.find(TASK.task_uuid)
        assert stored is not None
        assert stored.row.stored_inputs == (one,)
        assert await table.take_expired(LATER) == ["other"]
        await store.succeed(TASK.task_uuid)
        assert sorted(await table.take_expired(LATER)) == ["needed", "other"]

    with_table(url, scenario)


def test_an_image_is_found_by_its_uuid_until_it_expires(url: str) -> None:
    async def scenario(store: TaskStore, table: InputTable) -> None:
        for uuid, expires_at in (("i1", SOON), ("i2", NOW), ("i3", FOREVER)):
            image = replace(IMAGE, image_uuid=uuid, name=f"{uuid}.png", task_uuid=UPLOAD)
            await store.add_image(replace(image, expires_at=expires_at), None)
        found = [await table.find_image(uuid, NOW) for uuid in ("i1", "i2", "i3", "i4")]
        assert found == ["i1.png", None, None, None]

    with_table(url, scenario)
