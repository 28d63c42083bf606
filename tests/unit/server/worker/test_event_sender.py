"""The event sender: in order, and one end for each job whatever fails."""

from dataclasses import replace
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.request import Diagnostics, ImageDone, ImageRequest, StepDone
from server.engine.messages import Job, JobDone, JobFailed, JobImage, JobStep, WorkerEvent
from server.process import add_request_id
from server.worker.event_sender import EventSender

DIAGNOSTICS = Diagnostics(
    cache="none",
    num_steps=1,
    reused_steps=(),
    window=(0, 1),
    max_consecutive=3,
    tea_threshold=None,
    fb_threshold=None,
    is_calibrated=False,
    num_evaluations=1,
    scheduler="Default",
    resolved_scheduler="Euler shifted",
    sigma_schedule="shifted",
    scheduler_status="native",
)
REQUEST = ImageRequest(prompt="a fox", num_steps=1, guidance=1.0, seeds=(1, 2))


def job(job_id: str = "a", image_format: Any = "PNG") -> Job:
    return Job(job_id=job_id, request=REQUEST, image_format=image_format, quality=90)


def image(number: int, pixels: Any = None) -> ImageDone:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    return ImageDone(
        image=number,
        seed=number,
        pixels_yx3=noise if pixels is None else pixels,
        diagnostics=DIAGNOSTICS,
    )


@pytest.fixture
def sent() -> list[WorkerEvent]:
    return []


@pytest.fixture
def sender(sent: list[WorkerEvent]) -> EventSender:
    return EventSender(cast(Connection, SimpleNamespace(send=sent.append)))


def test_events_arrive_in_order_although_images_take_time(
    sender: EventSender, sent: list[WorkerEvent]
) -> None:
    for number in range(2):
        sender.send_event(job(), StepDone(image=number, step=1, num_steps=1))
        sender.send_event(job(), image(number))
    sender.send(JobDone(job_id="a"))
    sender.close()
    kinds = [type(event) for event in sent]
    assert kinds == [JobStep, JobImage, JobStep, JobImage, JobDone]


def test_a_job_whose_image_cannot_be_encoded_ends_once_and_others_go_on(
    sender: EventSender, sent: list[WorkerEvent]
) -> None:
    sender.send_event(job(), image(0, pixels=np.zeros((0, 0, 3), dtype=np.uint8)))
    sender.send_event(job(), image(1))
    sender.send_event(job("b"), image(0))
    sender.send(JobDone(job_id="a"))
    sender.send(JobDone(job_id="b"))
    sender.close()
    assert [(type(event), event.job_id) for event in sent if not isinstance(event, JobStep)] == [  # type: ignore[union-attr]
        (JobFailed, "a"),
        (JobImage, "b"),
        (JobDone, "b"),
    ]


def test_the_line_of_an_image_that_cannot_be_encoded_carries_the_id_of_its_request(
    sender: EventSender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(add_request_id)
    broken = image(0, pixels=np.zeros((0, 0, 3), dtype=np.uint8))
    for name in ("one", "two"):
        sender.send_event(replace(job(name), request_id=f"request-{name}"), broken)
    sender.close()
    caplog.handler.removeFilter(add_request_id)
    ids = [line.__dict__["request_id"] for line in caplog.records]
    assert ids == ["request-one", "request-two"]
