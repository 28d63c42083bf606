"""`hyimage bench load` against a server of this process: every transport, every way to fail."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.app import app
from server.app import create_app
from server.engine.messages import Job, JobEvent, JobQueued, JobStarted
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, one_step
from tests.served_app import served

RUNNER = CliRunner()
QUICK = ("--requests", "6", "--warm-up", "1", "--steps", "2", "--poll-every", "0.02")
EVERY_WAY = ("--transport", "sync", "--transport", "async", "--transport", "websocket")

Serve = Callable[..., str]


@pytest.fixture
def serve(
    settings: Settings, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serve]:
    """Return a function that starts a server with these keys and returns its address."""
    with ExitStack() as stack:

        def start(keys: Sequence[str] = (), **changes: Any) -> str:
            monkeypatch.setenv("HYIMAGE_API_KEYS", ",".join(keys))
            application = create_app(change(settings, **changes), engine)
            return stack.enter_context(served(application))

        yield start


def load(url: str, *words: str, key: str | None = None) -> tuple[int, str]:
    """Return the exit code of a load run and what it prints, in one line."""
    result = RUNNER.invoke(app, ["bench", "load", url, *words], env={"HYIMAGE_API_KEY": key})
    return result.exit_code, " ".join(result.output.split())


def measured(url: str, folder: Path, *words: str, key: str | None = None) -> list[dict[str, Any]]:
    """Run a load; return the figures of its levels."""
    path = folder / "load.json"
    code, output = load(url, *words, "--json", str(path), key=key)
    assert code == 0, output
    levels: list[dict[str, Any]] = json.loads(path.read_text())["levels"]
    return levels


def waiting_story(job: Job) -> list[JobEvent]:
    return [
        JobQueued(job_id=job.job_id, position=1),
        JobStarted(job_id=job.job_id),
        one_step(job, 0),
    ]


def test_closed_and_open_loops_by_every_transport(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.story = waiting_story
    words = (*QUICK, *EVERY_WAY, "--concurrency", "3", "--rate", "40", "--size", "1024x1024")
    url = serve()
    levels = measured(url, tmp_path, *words)
    assert [(level["kind"], level["load"]) for level in levels] == [("closed", 3), ("open", 40)]
    for level in levels:
        assert (level["num_requests"], level["num_ok"], level["errors"]) == (6, 6, {})
        assert level["queue_wait"]["count"] == 6
        # The fake engine pauses 0.05 s before each of three events: a task begins after two.
        assert 0.1 <= level["queue_wait"]["p50"] < level["latency"]["p50"]
        assert level["latency"]["p50"] >= 0.15
        assert level["megapixels_per_s"] == pytest.approx(1.0486 * level["images_per_s"], rel=0.01)
        assert {group["transport"] for group in level["groups"]} == {"sync", "async", "websocket"}
    assert len(engine.jobs) == 1 + 2 * 6  # with the warm-up
    seeds = [job.request.seeds for job in engine.jobs[1:]]
    assert sorted(seeds[:6]) == sorted(seeds[6:])  # the same tasks at each load


def test_a_run_prints_its_figures_and_writes_its_chart(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra `plot`) is not installed")
    chart = tmp_path / "load.png"
    code, output = load(serve(), *QUICK, "--concurrency", "2", "--chart", str(chart))
    assert code == 0, output
    assert "2 at once" in output
    assert "6/6" in output
    assert "p99 of 6 values is all but the longest" in output
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_without_queue_waits_no_events_are_followed(serve: Serve, tmp_path: Path) -> None:
    (level,) = measured(serve(), tmp_path, *QUICK, "--concurrency", "1", "--no-queue-wait")
    assert level["num_ok"] == 6
    assert level["queue_wait"] is None


@pytest.mark.parametrize("transport", ["sync", "async", "websocket"])
def test_failures_are_counted_by_their_code(
    serve: Serve, engine: FakeEngine, tmp_path: Path, transport: str
) -> None:
    engine.failure = ("outOfMemory", "too large")
    words = (*QUICK, "--concurrency", "2", "--transport", transport)
    (level,) = measured(serve(), tmp_path, *words)
    assert (level["num_ok"], level["errors"], level["latency"]) == (0, {"outOfMemory": 6}, None)


@pytest.mark.parametrize("transport", ["sync", "async", "websocket"])
def test_what_a_full_queue_refuses_is_counted(
    serve: Serve, engine: FakeEngine, tmp_path: Path, transport: str
) -> None:
    engine.story = waiting_story
    words = (*QUICK, "--concurrency", "6", "--transport", transport, "--warm-up", "0")
    (level,) = measured(serve(server__max_queued_images=1), tmp_path, *words)
    assert level["num_ok"] >= 1
    assert level["errors"] == {"rateLimitExceeded": 6 - level["num_ok"]}
    assert level["num_ok"] < 6


@pytest.mark.parametrize("transport", ["sync", "async", "websocket"])
def test_a_task_that_takes_too_long_is_given_up_and_cancelled(
    serve: Serve, engine: FakeEngine, tmp_path: Path, transport: str
) -> None:
    engine.is_held = True
    url = serve()
    words = ("--requests", "2", "--warm-up", "0", "--timeout", "1", "--transport", transport)
    (level,) = measured(url, tmp_path, *words, "--concurrency", "2")
    assert level["errors"] == {"timeout": 2}
    assert len(engine.cancelled) == 2
    assert httpx.get(f"{url}/v1/status").json()["tasks"] == []


def test_a_key_is_sent_by_every_transport(serve: Serve, tmp_path: Path) -> None:
    url = serve(keys=("one",))
    (level,) = measured(url, tmp_path, *QUICK, *EVERY_WAY, "--concurrency", "2", key="one")
    assert level["num_ok"] == 6
    code, output = load(url, *QUICK)
    assert (code, "set HYIMAGE_API_KEY or give --key" in output) == (2, True)


def test_prompts_come_from_a_file_or_the_servers_examples(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    url = serve()
    examples = httpx.get(f"{url}/page/config.json").json()["examples"]
    measured(url, tmp_path, *QUICK, "--concurrency", "1")
    assert {job.request.prompt for job in engine.jobs} <= set(examples)
    file = tmp_path / "prompts.txt"
    file.write_text("a blue owl\n\na pink owl\n")
    engine.jobs.clear()
    measured(url, tmp_path, *QUICK, "--concurrency", "1", "--prompts", str(file))
    assert {job.request.prompt for job in engine.jobs} == {"a blue owl", "a pink owl"}
    file.write_text("\n")
    assert "holds no prompt" in load(url, "--prompts", str(file))[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "8x8"), "unsupportedDimensions"),
        (("--size", "big"), "write WIDTHxHEIGHT"),
        (("--rate", "0"), "a rate must be above 0"),
        (("--chart", "load.txt"), "must end in one of .png"),
        (("--chart", "no/such/folder/load.png"), "does not exist"),
        (("--checkpoint", "checkpoints/tiny"), "`hyimage bench loading`"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_load(
    serve: Serve, engine: FakeEngine, words: tuple[str, ...], message: str
) -> None:
    code, output = load(serve(), *words)
    assert (code, engine.jobs) == (2, [])
    assert message in output
