"""A server in this process with a fake engine: every job succeeds at once, or as arranged."""

import asyncio
import base64
import contextlib
import io
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.testclient import WebSocketTestSession

from pipeline.request import Diagnostics, ImageRequest
from server.api.state import AppState
from server.app import create_app
from server.engine.messages import (
    Job,
    JobCancelled,
    JobDone,
    JobEvent,
    JobFailed,
    JobImage,
    JobStep,
)
from server.engine.protocol import EngineFigures, EngineStatus
from server.settings import Settings, load_settings
from server.tasks.service import TaskService
from tests.waiting import until

STORY_PAUSE_S = 0.05


def make_task(**changes: Any) -> dict[str, Any]:
    """Return a valid task with a new UUID; a change to `...` leaves the parameter out."""
    task = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:180@1",
        "positivePrompt": "a red fox",
        **changes,
    }
    return {name: value for name, value in task.items() if value is not ...}


def make_diagnostics(request: ImageRequest) -> Diagnostics:
    """Return what a request without surprises gets."""
    return Diagnostics(
        cache=request.cache.name,
        num_steps=request.num_steps,
        reused_steps=(),
        window=(request.cache.start, request.cache.end),
        max_consecutive=request.cache.max_consecutive,
        tea_threshold=None,
        fb_threshold=None,
        is_calibrated=False,
        num_evaluations=request.num_steps,
        scheduler=request.scheduler,
        resolved_scheduler="Euler shifted",
        sigma_schedule="shifted",
        scheduler_status="native",
    )


def refusal(client: TestClient, **changes: Any) -> dict[str, Any]:
    """Send a task that is refused; return its error."""
    response = client.post("/v1", json=[make_task(**changes)])
    body = response.json()
    assert response.status_code == 400, response.text
    assert body["data"] == []
    assert body["error"] == body["errors"][0]
    error: dict[str, Any] = body["errors"][0]
    return error


def ask(socket: WebSocketTestSession, *tasks: object) -> dict[str, Any]:
    """Send a frame and return the next one."""
    socket.send_text(json.dumps(tasks))
    frame: dict[str, Any] = socket.receive_json()
    return frame


def change(settings: Settings, **values: Any) -> Settings:
    """Return settings with other values, each given as section__field."""
    for name, value in values.items():
        section, field = name.split("__")
        changed = getattr(settings, section).model_copy(update={field: value})
        settings = settings.model_copy(update={section: changed})
    return settings


def picture(shade: int = 0, form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 100, 50)).save(buffer, form)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def state_of(client: TestClient) -> AppState:
    """Return the state of the application behind a client."""
    app: Any = client.app
    return cast(AppState, app.state.hyimage)


def tasks_of(client: TestClient) -> TaskService:
    """Return the task service behind a client."""
    return state_of(client).tasks


def one_step(job: Job, image: int) -> JobStep:
    return JobStep(job_id=job.job_id, image=image, step=1, num_steps=job.request.num_steps)


class FakeEngine:
    """Generates at once: one step and one image a seed.

    `failure` (code, message) fails jobs, `failure_after` fails them after so many images, `fault`
    raises out of them; `is_held` lets them wait; `story` are the events before an image.
    As `Engine` requires, no job is left without an end when it stops.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.failure: tuple[str, str] | None = None
        self.failure_after: int | None = None
        self.fault: Exception | None = None
        self.is_held = False
        self.is_stopped = False
        self.cancelled: set[str] = set()
        self.previewed: set[str] = set()
        self.encoded: bytes | None = None  # of every image
        self.story: Callable[[Job], list[JobEvent]] | None = None
        self.status = EngineStatus(is_ready=True, description="fake")
        self.figures = EngineFigures()

    async def start(self) -> None:
        self.is_stopped = False

    async def stop(self) -> None:
        self.is_stopped = True

    async def cancel(self, job_id: str) -> None:
        self.cancelled.add(job_id)

    async def show_previews(self, job_id: str) -> None:
        self.previewed.add(job_id)

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        self.jobs.append(job)
        await until(lambda: not self.is_held or self.is_stopped or job.job_id in self.cancelled)
        if job.job_id in self.cancelled:
            yield JobCancelled(job_id=job.job_id)
            return
        if self.is_stopped:
            yield JobFailed(job_id=job.job_id, code="serviceUnavailable", message="stopped")
            return
        if self.fault is not None:
            raise self.fault
        if self.failure:
            yield JobFailed(job_id=job.job_id, code=self.failure[0], message=self.failure[1])
            return
        request = job.request
        for image, seed in enumerate(request.seeds):
            if image == self.failure_after:
                yield JobFailed(job_id=job.job_id, code="inferenceError", message="died")
                return
            for event in self.story(job) if self.story else [one_step(job, image)]:
                await asyncio.sleep(STORY_PAUSE_S if self.story else 0)  # for those who follow
                yield event
            yield JobImage(
                job_id=job.job_id,
                image=image,
                encoded=self.encoded or b"image %d" % seed,
                width_px=request.width_px or 1344,
                height_px=request.height_px or 704,
                diagnostics=make_diagnostics(request),
            )
        yield JobDone(job_id=job.job_id)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


def make_settings(tmp_path: Path) -> Settings:
    """Return settings of a server whose files are all in one folder."""
    golden = Path(__file__).parents[1] / "golden" / "model"
    (tmp_path / "checkpoint").mkdir()
    config = (golden / "config.json").read_text()
    (tmp_path / "checkpoint" / "config.json").write_text(
        config.replace('"image_base_size": 256', '"image_base_size": 1024')
    )
    for name in ("generation_config.json", "tokenizer.json"):
        (tmp_path / "checkpoint" / name).write_bytes((golden / name).read_bytes())
    return change(
        load_settings(None, worker__checkpoint=str(tmp_path / "checkpoint")),
        images__store=str(tmp_path / "images"),
        server__max_body_bytes=100_000,
        server__max_queued_images=25,
        tasks__database_url=f"sqlite:///{tmp_path}/tasks.db",
        keys__file=str(tmp_path / "keys.json"),
    )


@pytest.fixture
def client(settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    app: Any = create_app(settings, engine)
    with TestClient(app, base_url="http://example.test:8000", follow_redirects=False) as client:
        yield client


@pytest.fixture
def new_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TestClient]]:
    """Return a function that starts a server with these keys; a test may start several."""
    with contextlib.ExitStack() as stack:

        def new(settings: Settings, engine: FakeEngine, keys: Sequence[str] = ()) -> TestClient:
            monkeypatch.setenv("HYIMAGE_API_KEYS", ",".join(keys))
            app: Any = create_app(settings, engine)
            return stack.enter_context(TestClient(app, base_url="http://example.test:8000"))

        yield new


def make_editing(settings: Settings) -> Settings:
    """Return settings of an Instruct checkpoint whose worker reads images; loopback is open."""
    path = Path(settings.worker.checkpoint) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sequence_template": "instruct"}))
    return change(settings, worker__image_inputs=True, egress__allowed_networks=("127.0.0.0/8",))


@pytest.fixture
def editing(settings: Settings) -> Settings:
    """An Instruct checkpoint whose worker reads images."""
    return make_editing(settings)


@pytest.fixture
def editor(editing: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(create_app(editing, engine), base_url="http://example.test:8000") as client:
        yield client
