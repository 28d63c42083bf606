"""The event log: any number of followers, continued where they left, to the end."""

import asyncio

from server.runware.errors import TaskError
from server.tasks.events import EventLog

TASK = {"taskType": "imageInference", "taskUUID": "u"}


async def kinds(log: EventLog, last_id: str = "") -> list[str]:
    return [event.kind async for event in log.follow(last_id)]


def ended_log() -> EventLog:
    log = EventLog()
    log.add("queued", {"position": 2})
    log.add("queued", {"position": 1})
    log.add("started", {})
    for step in (1, 2):
        log.add("step", {"image": 0, "step": step})
        log.add("preview", {"image": 0, "step": step})
    log.end(TASK, None)
    return log


def test_a_late_follower_gets_every_step_and_only_the_newest_preview_and_position() -> None:
    async def scenario() -> list[tuple[str, object]]:
        return [(e.kind, e.values.get("step")) async for e in ended_log().follow()]

    got = asyncio.run(scenario())
    assert [kind for kind, _ in got] == ["queued", "started", "step", "step", "preview", "done"]
    assert ("preview", 2) in got


def test_a_follower_continues_after_the_event_it_names_and_gets_none_twice() -> None:
    async def scenario() -> None:
        log = ended_log()
        events = [event async for event in log.follow()]
        for place, event in enumerate(events):
            rest = [e.number async for e in log.follow(log.id_of(event))]
            assert rest == [e.number for e in events[place + 1 :]]

    asyncio.run(scenario())


def test_the_id_of_another_run_gives_the_whole_of_this_one() -> None:
    async def scenario() -> None:
        log = ended_log()
        assert await kinds(log, "0badcafe-7") == await kinds(log)
        assert await kinds(log, "nonsense") == await kinds(log)

    asyncio.run(scenario())


def test_followers_wait_for_events_and_all_end_with_the_task() -> None:
    async def scenario() -> None:
        log = EventLog()
        followers = [asyncio.ensure_future(kinds(log)) for _ in range(3)]
        for step in range(5):
            await asyncio.sleep(0)
            log.add("step", {"image": 0, "step": step})
        log.end(TASK, TaskError("taskCancelled", "The task was cancelled."))
        async with asyncio.timeout(5):
            assert await asyncio.gather(*followers) == [["step"] * 5 + ["cancelled"]] * 3

    asyncio.run(scenario())


def test_a_failure_carries_its_error() -> None:
    async def scenario() -> None:
        log = EventLog()
        log.end(TASK, TaskError("inferenceError", "died"))
        (event,) = [event async for event in log.follow()]
        assert event.kind == "failed"
        assert event.values["error"]["code"] == "inferenceError"
        assert event.values["error"]["taskUUID"] == "u"

    asyncio.run(scenario())


def test_a_log_that_is_broken_off_lets_its_followers_go_without_an_end() -> None:
    async def scenario() -> None:
        log = EventLog()
        log.add("started", {})
        follower = asyncio.ensure_future(kinds(log))
        await asyncio.sleep(0)
        log.break_off()
        async with asyncio.timeout(5):
            assert await follower == ["started"]

    asyncio.run(scenario())
