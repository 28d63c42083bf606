"""`hyimage status` and `hyimage cancel` against a server of this process."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from cli.app import app
from cli.status import MAX_TASKS, render, watch
from server.app import create_app
from server.runware.errors import CommandError
from server.runware.status_answer import Status, TaskState
from server.settings import Settings
from tests.contract.conftest import FakeEngine, make_task
from tests.served_app import served
from tests.waiting import wait_until
from tools.api_client import base_url, key_headers

RUNNER = CliRunner()
NOWHERE = "http://127.0.0.1:9"  # the port of a service that nothing runs
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def serve(
    settings: Settings, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Return a function that starts a server with these keys and returns its address."""
    with ExitStack() as stack:

        def start(keys: Sequence[str] = ()) -> str:
            monkeypatch.setenv("HYIMAGE_API_KEYS", ",".join(keys))
            return stack.enter_context(served(create_app(settings, engine)))

        yield start


def run(*words: str, key: str | None = None) -> tuple[int, str]:
    """Return the exit code of a command and what it prints, in one line."""
    result = RUNNER.invoke(app, list(words), env={"HYIMAGE_API_KEY": key})
    return result.exit_code, " ".join(result.output.split())


def send(url: str, key: str = "any", **changes: Any) -> str:
    task = make_task(deliveryMethod="async", **changes)
    headers = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{url}/v1", json=[task], headers=headers).raise_for_status()
    return str(task["taskUUID"])


def test_a_task_is_cancelled_and_cancelling_again_changes_nothing(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve()
    engine.is_held = True
    task_uuid = send(url)
    for _ in range(2):
        assert run("cancel", task_uuid, url) == (0, f"{task_uuid} cancelled")


def test_a_task_that_has_ended_is_not_cancelled_and_the_exit_code_says_so(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve()
    task = make_task()
    httpx.post(f"{url}/v1", json=[task]).raise_for_status()
    code, output = run("cancel", task["taskUUID"], url)
    assert (code, "it had finished already" in output) == (1, True)
    engine.failure = ("inferenceError", "died")
    failed = send(url)
    wait_until(lambda: httpx.get(f"{url}/v1/status").json()["tasks"] == [])
    code, output = run("cancel", failed, url)
    assert (code, "it had failed already" in output) == (1, True)


def test_an_unknown_task_is_an_error(serve: Callable[..., str]) -> None:
    code, output = run("cancel", UNKNOWN, serve())
    assert code == 2
    assert f"taskFailedOrNotFound: There is no task '{UNKNOWN}'" in output
    code, output = run("cancel", "../status", serve())
    assert code == 2


def test_the_key_comes_from_the_option_or_the_variable(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(keys=("one", "two"))
    engine.is_held = True
    first, second = send(url, "one"), send(url, "one")
    for words in (("cancel", first, url), ("status", url, "--once")):
        code, output = run(*words)
        assert (code, "set HYIMAGE_API_KEY or give --key" in output) == (2, True)
        code, output = run(*words, "--key", "wrong")
        assert (code, "does not accept this API key" in output) == (2, True)
    assert run("cancel", first, url, key="two")[0] == 2  # another key's task is not known
    assert run("cancel", first, url, key="one")[0] == 0
    assert run("cancel", second, url, "--key", "one")[0] == 0


@pytest.mark.parametrize("words", [("cancel", UNKNOWN, NOWHERE), ("status", NOWHERE)])
def test_a_server_that_is_not_there_is_named_with_what_to_do(words: tuple[str, ...]) -> None:
    code, output = run(*words)
    assert code == 2
    assert f"{NOWHERE} cannot be reached" in output
    assert "`hyimage serve`" in output


def test_an_address_is_taken_as_clients_write_it_or_refused() -> None:
    assert base_url("http://host:1/v1/") == "http://host:1"
    for wrong in (
        "host:8000",
        "ftp://host",
        "http://",
        "http://:80",
        "http://host:99999",
        "http://[",
        "",
    ):
        with pytest.raises(CommandError, match="is no address of a server"):
            base_url(wrong)


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    with pytest.raises(CommandError) as caught:
        key_headers("sécret\n")
    assert "cret" not in str(caught.value)


def test_status_as_json_is_the_servers_answer(serve: Callable[..., str]) -> None:
    url = serve()
    result = RUNNER.invoke(app, ["status", f"{url}/v1", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output) == httpx.get(f"{url}/v1/status").json()


def test_status_shows_worker_queue_and_the_keys_own_tasks(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(keys=("one", "two"))
    engine.is_held = True
    mine, other = send(url, "one", width=1536, height=512), send(url, "two")
    code, output = run("status", url, "--once", key="one")
    assert code == 0
    assert "worker ready fake (runware:180@1, hyimage" in output
    assert "0 running, 2 waiting, 2 of at most 25 images; ? until it is empty" in output
    assert "1 of these tasks are of other keys" in output
    assert mine in output
    assert "1536x512" in output
    assert other not in output


def plain(shown: RenderableType) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def some_status(num_tasks: int = 0) -> Status:
    task: TaskState = {
        "taskUUID": UNKNOWN, "status": "running", "position": 0, "progress": 40, "images": 2,
        "width": None, "height": None, "steps": 20, "ageSeconds": 3.4, "estimatedSeconds": 5.6,
    }  # fmt: skip
    return {
        "version": "1",
        "model": "m",
        "worker": {"ready": False, "description": "[loading]", "memoryBytes": 3 << 20,
            "deaths": 2,
            "devices": [
                {"device": "cuda:0", "allocatedBytes": 5 << 29, "peakBytes": None,
                 "totalBytes": 80 << 30}
            ],
        },
        "queue": {
            "running": num_tasks, "queued": 0, "images": 0, "maxImages": 9, "otherKeys": 0,
            "estimatedSeconds": 5.6,
        },
        "tasks": [task] * num_tasks,
        "speeds": [
            {
                "megapixels": 1.049, "guided": True, "cache": "none", "scheduler": "Euler",
                "secondsPerStep": 0.1234, "secondsPerPrefill": None, "secondsPerDecode": 2.0,
            }
        ],
    }  # fmt: skip


def test_the_tables_hold_progress_what_is_left_and_the_speed() -> None:
    text = plain(render(some_status(1)))
    assert "not ready  [loading]  (m, hyimage 1, 3 MiB resident)" in text
    assert "cuda:0: 2.5 of 80.0 GiB allocated, ? at most so far" in text
    assert "died 2 times" in text
    assert re.search(rf"{UNKNOWN}.* 40 % .* 2 .* auto .* 20 .* 3 s .* 6 s", text)
    assert re.search(r"1\.05 .* yes .* none .* Euler .* 0\.123 .* 2\.000", text)


def test_many_tasks_are_cut_short_and_the_rest_is_counted() -> None:
    text = plain(render(some_status(MAX_TASKS + 3)))
    assert text.count(UNKNOWN) == MAX_TASKS
    assert "and 3 more" in text


def test_a_watch_goes_on_while_its_server_is_away_and_ends_with_ctrl_c() -> None:
    answers: list[Status | BaseException] = [
        some_status(), CommandError("it cannot be reached"), some_status(), KeyboardInterrupt(),
    ]  # fmt: skip
    shown: list[str] = []

    def fetch() -> Status:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    watch(fetch, lambda view: shown.append(plain(view)), 0.0, num_times=9)
    assert answers == []
    assert ["cannot be reached" in text for text in shown] == [False, True, False]
    assert "tried again" in shown[1]
