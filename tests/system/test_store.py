"""The store on SQLite, and on PostgreSQL where one is installed."""

import asyncio
import time
from dataclasses import replace

import pytest

from server.tasks.store import DuplicateTaskError, TaskStore
from server.tasks.tables import FAILED, RUNNING, SUCCESS, ImageRow, TaskRow, Webhook

TASK = TaskRow(
    task_uuid="t1",
    owner="anybody",
    request={"positivePrompt": "a red fox", "seed": 9223372036854776000},
    base_url="http://x",
    seeds=["9223372036854776000", "0"],
    image_uuids=["i1", "i2"],
    status=RUNNING,
    error=None,
    created_at=1.0,
)
IMAGE = ImageRow(
    image_uuid="i1", task_uuid="t1", position=0, name="i1.png", is_nsfw=None, expires_at=50.0
)
CALL = Webhook(
    task_uuid="t1", position=0, url="http://x", body={"a": 1}, num_tries=0, next_try_at=5.0
)


def test_of_two_servers_that_claim_at_once_each_task_goes_to_one(url: str) -> None:
    async def scenario() -> None:
        first, second = TaskStore(url), TaskStore(url)
        now = time.time()
        for store in (first, second):
            await store.open()
        for index in range(12):
            held = {0: None, 1: now - 1, 2: now + 60}[index % 3]
            await first.add(replace(TASK, task_uuid=f"t{index}", holder="dead", held_until=held))
        claims = await asyncio.gather(
            *(store.claim(name, now + 60, 8) for store, name in ((first, "a"), (second, "b")))
        )
        claimed = [stored.row.task_uuid for own in claims for stored in own]
        assert sorted(claimed) == sorted(f"t{i}" for i in range(12) if i % 3 != 2)
        assert await first.claim("a", now + 60, 8) == []
        await second.renew("b", 0.0, {})
        again = await first.claim("a", now + 60, 8)
        assert [s.row.task_uuid for s in again] == [s.row.task_uuid for s in claims[1]]
        assert {stored.row.holder for stored in claims[1]} <= {"b"}
        for index in range(12):
            await first.release(f"t{index}")
        for store in (first, second):
            await store.close()

    asyncio.run(scenario())


def test_a_server_that_lost_a_task_cannot_fail_it_and_tells_no_progress(url: str) -> None:
    async def scenario() -> None:
        store = TaskStore(url)
        await store.open()
        held = replace(TASK, holder="slow", held_until=time.time() - 1)
        await store.add(held)
        await store.renew("slow", time.time() - 1, {"t1": 30, "unknown": 50})
        (taken,) = await store.claim("quick", time.time() + 60, 8)
        assert taken.row.progress == 30
        await store.renew("quick", time.time() + 60, {"t1": 40})
        await store.renew("slow", time.time() + 60, {"t1": 35})
        await store.fail(held, {"code": "x"}, CALL)
        stored = await store.find("t1")
        assert stored is not None
        assert (stored.row.status, stored.row.progress) == (RUNNING, 40)
        await store.fail(taken.row, {"code": "y"})
        stored = await store.find("t1")
        assert stored is not None
        assert (stored.row.status, stored.row.error) == (FAILED, {"code": "y"})
        assert await store.list_due_webhooks(now=10.0, limit=10) == []
        await store.release("t1")
        await store.close()

    asyncio.run(scenario())


def test_a_webhook_call_is_made_by_one_of_two_servers(url: str) -> None:
    async def scenario() -> None:
        first, second = TaskStore(url), TaskStore(url)
        for store in (first, second):
            await store.open()
        await first.add(TASK)
        await first.add_image(IMAGE, CALL)
        (due,) = await first.list_due_webhooks(now=10.0, limit=10)
        claims = await asyncio.gather(
            *(store.claim_webhook(due, 70.0) for store in (first, second))
        )
        assert sorted(claims) == [False, True]
        assert await second.list_due_webhooks(now=10.0, limit=10) == []
        (later,) = await second.list_due_webhooks(now=70.0, limit=10)  # the first one died
        assert await second.claim_webhook(later, 130.0)
        await second.drop_webhook(later.id)
        await second.release("t1")
        for store in (first, second):
            await store.close()

    asyncio.run(scenario())


def test_a_task_lives_in_the_store_from_acceptance_to_being_forgotten(url: str) -> None:
    async def scenario() -> None:
        store = TaskStore(url)
        await store.open()
        await store.add(TASK)
        with pytest.raises(DuplicateTaskError):
            await store.add(TASK)
        (running,) = await store.list_running()
        assert running.row == TASK
        await store.add_image(IMAGE, CALL)
        await store.add_image(IMAGE, CALL)  # again, after a crash
        (call,) = await store.list_due_webhooks(now=10.0, limit=10)
        await store.delay_webhook(call.id, 1, 20.0)
        assert await store.list_due_webhooks(now=10.0, limit=10) == []
        assert (await store.list_due_webhooks(now=20.0, limit=10))[0].num_tries == 1
        await store.drop_webhook(call.id)
        second = replace(IMAGE, image_uuid="i2", position=1, name="i2.png")
        await store.add_image(second, None)
        await store.succeed("t1")
        await store.fail(TASK, {"code": "late"})  # a task that has ended stays as it ended
        stored = await store.find("t1")
        assert stored is not None
        assert (stored.row.status, stored.row.error) == (SUCCESS, None)
        assert [image.name for image in stored.images] == ["i1.png", "i2.png"]
        assert sorted(await store.list_expired_images(now=50.0)) == ["i1.png", "i2.png"]
        assert await store.list_running() == []
        assert sorted(await store.purge(retention_s=60)) == ["i1.png", "i2.png"]
        assert await store.find("t1") is None
        await store.add(TASK)  # its UUID is free again
        await store.fail(TASK, {"code": "x"}, CALL)
        failed = await store.find("t1")
        assert failed is not None
        assert (failed.row.status, failed.row.error) == (FAILED, {"code": "x"})
        await store.release("t1")
        assert await store.find("t1") is None
        await store.close()

    asyncio.run(scenario())


def test_many_writes_at_once_are_all_there_afterwards(url: str) -> None:
    async def scenario() -> list[bool]:
        store = TaskStore(url)
        await store.open()
        rows = [replace(TASK, task_uuid=f"many-{i % 90}") for i in range(100)]
        outcomes = await asyncio.gather(*map(store.add, rows), return_exceptions=True)
        assert all([await store.find(row.task_uuid) for row in rows])
        for row in rows[:90]:
            await store.release(row.task_uuid)
        await store.close()
        return [isinstance(outcome, DuplicateTaskError) for outcome in outcomes]

    assert asyncio.run(scenario()).count(True) == 10
