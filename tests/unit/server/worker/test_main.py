"""The worker's scheduler: its log lines carry the id of the request, and a bug ends one job."""

import logging
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import pytest

from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from server.engine.messages import Job, JobFailed
from server.process import add_request_id
from server.worker.main import StepScheduler

TIMEOUT_S = 30.0


@dataclass
class Server:
    """The server's ends of a worker's pipes."""

    jobs: Connection
    control: Connection

    def run(self, job: Job) -> object:
        """Send a job; return the worker's next message."""
        self.jobs.send(job)
        assert self.jobs.poll(TIMEOUT_S)
        return self.jobs.recv()


@pytest.fixture
def server() -> Iterator[Server]:
    """The server of a scheduler whose pipeline fails at its first use."""
    ours, theirs = multiprocessing.Pipe()
    control, their_control = multiprocessing.Pipe()
    broken = cast(Pipeline, object())

    def run() -> None:
        with pytest.raises(EOFError):
            StepScheduler(broken, theirs, their_control, max_active=2).run()

    thread = threading.Thread(target=run)
    thread.start()
    yield Server(ours, control)
    for end in (control, ours):
        end.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    for end in (theirs, their_control):
        end.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, with what the filter of every process adds to its records."""
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(add_request_id)
    yield caplog
    caplog.handler.removeFilter(add_request_id)


def job(name: str) -> Job:
    request = ImageRequest(prompt="a fox", num_steps=1, guidance=1.0, seeds=(1,))
    return Job(
        job_id=name, request=request, image_format="PNG", quality=90, request_id=f"request-{name}"
    )


def test_a_bug_ends_each_job_and_its_line_carries_the_id_of_its_request(
    server: Server, lines: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        failed = server.run(job(name))
        assert isinstance(failed, JobFailed)
        assert (failed.job_id, failed.code) == (name, "inferenceError")
    said = {line.getMessage(): line.__dict__["request_id"] for line in lines.records}
    assert said == {"job one failed": "request-one", "job two failed": "request-two"}
