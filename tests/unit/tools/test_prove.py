"""Proof of a server from outside, against servers that answer as is arranged."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from server.runware.errors import CommandError
from tools.prove import (
    FILE_NAME,
    build_tasks,
    judge_image,
    judge_server,
    load_recording,
    record_server,
)
from tools.similarity import Pixels

TASKS = build_tasks(["a red fox", "tea"], "m:1@1", (16, 16), 4, 7.0, {"acceleration": "none"})
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


def image_of(task: dict[str, Any], width: int = 16) -> Pixels:
    """Return an image that depends on the task."""
    rng = np.random.default_rng(task["seed"])
    return rng.integers(0, 256, (16, width, 3), dtype=np.uint8)


def encoded(pixels_yx3: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels_yx3).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def honest(task: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"data": [{"imageBase64Data": encoded(image_of(task))}]}


@contextmanager
def server(answer: Answer) -> Iterator[httpx.Client]:
    def handle(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/v1")
        (task,) = json.loads(request.content)
        status, body = answer(task)
        return httpx.Response(status, json=body)

    transport = httpx.MockTransport(handle)
    with httpx.Client(base_url="http://server", transport=transport) as client:
        yield client


def record(folder: Path, answer: Answer = honest) -> None:
    with server(answer) as client:
        record_server(client, TASKS, folder)


def judge(folder: Path, answer: Answer) -> list[str]:
    with server(answer) as client:
        return [v.judgement for v in judge_server(client, load_recording(folder), 40.0)]


def test_a_recording_is_read_back_as_the_server_gave_it(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []

    def note(task: dict[str, Any]) -> tuple[int, Any]:
        sent.append(task)
        return honest(task)

    record(tmp_path / "r", note)
    recording = load_recording(tmp_path / "r")
    assert recording.tasks == tuple(TASKS)
    assert all(
        np.array_equal(image, image_of(task))
        for image, task in zip(recording.images, TASKS, strict=True)
    )
    assert [task["seed"] for task in sent] == [0, 1]
    assert sent[0]["acceleration"] == "none"
    assert (sent[0]["outputType"], sent[0]["outputFormat"]) == ("base64Data", "PNG")
    assert len({task["taskUUID"] for task in sent}) == 2
    with pytest.raises(CommandError, match="is not written over"):
        record(tmp_path / "r")


def test_equal_near_and_other_images_are_judged(tmp_path: Path) -> None:
    def near(task: dict[str, Any]) -> tuple[int, Any]:
        pixels = image_of(task)
        nudged = np.where(pixels > 127, pixels - 1, pixels + 1).astype(np.uint8)
        data = f"data:image/png;base64,{encoded(nudged)}"
        return 200, {"data": [{"imageDataURI": data}]}

    def other_second(task: dict[str, Any]) -> tuple[int, Any]:
        return honest({**task, "seed": 7}) if task["seed"] else honest(task)

    record(tmp_path)
    assert judge(tmp_path, honest) == ["equal", "equal"]
    assert judge(tmp_path, near) == ["same", "same"]
    assert judge(tmp_path, other_second) == ["equal", "different"]


def test_another_size_is_another_image_and_says_so() -> None:
    verdict = judge_image(TASKS[0], image_of(TASKS[0], 32), image_of(TASKS[0]), 40.0)
    assert (verdict.judgement, verdict.psnr) == ("different", None)
    assert verdict.note == "32x16 pixels, recorded with 16x16"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"errors": [{"code": "missingApiKey", "message": "m"}]}, "wants an API key"),
        (401, {"errors": [{"code": "invalidApiKey", "message": "m"}]}, "does not accept this API"),
        (400, {"errors": [{"code": "invalidWidth", "message": "16 is odd"}]}, "16 is odd"),
        (200, {"data": [], "errors": [{"message": "no such model"}]}, "seed 0.*no such model"),
        (200, {"data": []}, "no image, and no error"),
        (200, {"data": [{"taskUUID": "x"}]}, "none of imageBase64Data.*but taskUUID"),
        (200, {"data": [{"imageBase64Data": "bm8="}]}, "imageBase64Data is no image"),
        (200, ["x"], "not as a hyimage server"),
        (502, "down", "status 502"),
    ],
)
def test_what_a_server_answers_instead_of_an_image_is_said(
    tmp_path: Path, status: int, body: Any, said: str
) -> None:
    record(tmp_path)
    with pytest.raises(CommandError, match=said):
        judge(tmp_path, lambda task: (status, body))


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "make a recording with"), ("{", "no recording"), ('{"tasks": []}', "holds no tasks"),
     ('{"tasks": [{}]}', "no recording"),
     ('{"tasks": [{"positivePrompt": "a", "seed": 1}]}', "000.png")],
)  # fmt: skip
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(CommandError, match=said):
        load_recording(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9"], "either the folder"),
        (["http://127.0.0.1:9", "here", "--record", "there"], "either the folder"),
        (["ftp://x", "here"], "no address of a server"),
        (["http://127.0.0.1:9", "here"], "make a recording with"),
        (["http://127.0.0.1:9", "--record", "there"], "cannot be reached"),
        (["http://127.0.0.1:9", "--record", "there", "--parameters", "{"], "is not JSON"),
        (["http://127.0.0.1:9", "--record", "there", "--parameters", "3"], "is no object"),
        (["http://127.0.0.1:9", "--record", "there", "--size", "big"], "WIDTHxHEIGHT"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["prove", *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not Path("there").exists()
