"""Proof of a server from outside: the images of its API against a recorded set of images.

A recording is a folder: recording.json with the tasks, and their images as PNG. Any server that
speaks imageInference can be recorded or judged; nothing but POST /v1 is used.
"""

import base64
import binascii
import io
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image, UnidentifiedImageError

from server.runware.errors import CommandError
from tools.api_client import call, reason_of
from tools.progress import Report, ignore
from tools.similarity import MAX_PSNR, Pixels, psnr, ssim

FILE_NAME = "recording.json"
TIMEOUT_S = 600.0  # of one image

Judgement = Literal["equal", "same", "different"]
Task = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """Tasks without their UUIDs, and the image of each."""

    server: str
    tasks: tuple[Task, ...]
    images: tuple[Pixels, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How near a server's image is to the recorded one: `equal` pixels, the `same` image or not.

    PSNR in dB, 99 for equal images; it and SSIM are None where the sizes differ, as `note` says.
    """

    prompt: str
    seed: int
    judgement: Judgement
    psnr: float | None
    ssim: float | None
    note: str = ""


def build_tasks(
    prompts: Sequence[str],
    model: str,
    size_px: tuple[int, int],
    steps: int,
    guidance: float,
    parameters: Task,
) -> list[Task]:
    """Return a task for each prompt, the n-th from seed n; `parameters` are added to all."""
    width_px, height_px = size_px
    return [
        {
            "taskType": "imageInference",
            "model": model,
            "positivePrompt": prompt,
            "width": width_px,
            "height": height_px,
            "steps": steps,
            "CFGScale": guidance,
            "seed": seed,
            **parameters,
        }
        for seed, prompt in enumerate(prompts)
    ]


def record_server(
    client: httpx.Client, tasks: Sequence[Task], folder: Path, report: Report = ignore
) -> Recording:
    """Generate the tasks on a server and write the recording.

    Raises:
        CommandError: the folder holds a recording, or the server does not answer with images.
    """
    path = folder / FILE_NAME
    if path.exists():
        raise CommandError(f"{path} exists; a recording is not written over: name another folder")
    images = []
    for number, task in enumerate(tasks, start=1):
        images.append(fetch_image(client, task))
        report("recording", number, len(tasks))
    recording = Recording(str(client.base_url), tuple(tasks), tuple(images))
    save_recording(folder, recording)
    return recording


def save_recording(folder: Path, recording: Recording) -> None:
    """Write the images and then what names them, so that a half-written folder is no recording."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels_yx3 in enumerate(recording.images):
        Image.fromarray(pixels_yx3).save(folder / _image_name(number))
    raw = {"server": recording.server, "tasks": recording.tasks}
    partial = folder / f".{FILE_NAME}.partial"
    partial.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / FILE_NAME)


def load_recording(folder: Path) -> Recording:
    """Return a recording.

    Raises:
        CommandError: the folder holds none, or part of one.
    """
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        tasks = tuple(dict(task) for task in raw["tasks"])
        for task in tasks:
            task["positivePrompt"], task["seed"]
        images = tuple(_decode((folder / _image_name(n)).read_bytes()) for n in range(len(tasks)))
    except OSError as e:
        raise CommandError(
            f"{e.filename} cannot be read ({e.strerror}); make a recording with "
            "`hyimage prove URL --record FOLDER`"
        ) from None
    except (ValueError, TypeError, KeyError) as e:
        raise CommandError(f"{path} is no recording ({e}); make it again with --record") from None
    if not tasks:
        raise CommandError(f"{path} holds no tasks; make it again with --record")
    return Recording(str(raw.get("server", "")), tasks, images)


def judge_server(
    client: httpx.Client, recording: Recording, min_psnr: float, report: Report = ignore
) -> Iterator[Verdict]:
    """Yield a verdict on each image of a recording, which the server generates again.

    Raises:
        CommandError: the server does not answer with an image.
    """
    pairs = zip(recording.tasks, recording.images, strict=True)
    for number, (task, recorded_yx3) in enumerate(pairs, start=1):
        verdict = judge_image(task, fetch_image(client, task), recorded_yx3, min_psnr)
        report("judging", number, len(recording.tasks))
        yield verdict


def judge_image(task: Task, ours_yx3: Pixels, recorded_yx3: Pixels, min_psnr: float) -> Verdict:
    """Return the verdict on one image."""
    prompt, seed = str(task["positivePrompt"]), int(task["seed"])
    if ours_yx3.shape != recorded_yx3.shape:
        (ours_y, ours_x, _), (y, x, _) = ours_yx3.shape, recorded_yx3.shape
        note = f"{ours_x}x{ours_y} pixels, recorded with {x}x{y}"
        return Verdict(
            prompt=prompt, seed=seed, judgement="different", psnr=None, ssim=None, note=note
        )
    ratio = psnr(ours_yx3, recorded_yx3)
    judgement: Judgement = "same" if ratio >= min_psnr else "different"
    return Verdict(
        prompt=prompt,
        seed=seed,
        judgement="equal" if ratio > MAX_PSNR else judgement,
        psnr=min(MAX_PSNR, ratio),
        ssim=ssim(ours_yx3, recorded_yx3),
    )


def fetch_image(client: httpx.Client, task: Task) -> Pixels:
    """Return the image that a server generates for a task. Shapes: -> rgb_yx3.

    Raises:
        CommandError: it cannot be reached, refuses, or answers with something else.
    """
    client.timeout = httpx.Timeout(TIMEOUT_S)
    wanted = {"outputType": "base64Data", "outputFormat": "PNG", "numberResults": 1}
    body = [{**task, **wanted, "taskUUID": str(uuid.uuid4())}]
    answer = call(client, "POST", "/v1", body)
    where = f"{client.base_url} (seed {task['seed']})"
    try:
        (item,) = answer["data"]
    except (KeyError, TypeError, ValueError):
        errors = answer.get("errors") or [{"message": "no image, and no error"}]
        message = errors[0].get("message") if isinstance(errors[0], dict) else errors[0]
        raise CommandError(f"{where}: {message}") from None
    for name, read in _FORMS.items():
        if isinstance(value := item.get(name), str):
            try:
                return _decode(read(value))
            except (ValueError, binascii.Error) as e:
                raise CommandError(f"{where}: {name} is no image: {e}") from None
    raise CommandError(
        f"{where}: the answer has none of {', '.join(_FORMS)}, but {', '.join(item)}; the server "
        "must return images of synchronous tasks"
    )


def _from_url(url: str) -> bytes:
    try:
        response = httpx.get(url, timeout=TIMEOUT_S, trust_env=False, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPError as e:
        raise CommandError(f"{url} cannot be fetched: {reason_of(e)}") from None
    return response.content


# A server that ignores the wanted form still answers with an image.
_FORMS: dict[str, Callable[[str], bytes]] = {
    "imageBase64Data": lambda value: base64.b64decode(value, validate=True),
    "imageDataURI": lambda value: base64.b64decode(value.partition(",")[2], validate=True),
    "imageURL": _from_url,
}


def _decode(content: bytes) -> Pixels:
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (UnidentifiedImageError, OSError) as e:
        raise ValueError(str(e)) from None


def _image_name(number: int) -> str:
    return f"{number:03}.png"
