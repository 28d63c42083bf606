"""The whole thing as a newcomer meets it: `hyimage serve` in its own process, and HTTP."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.waiting import wait_until
from training.random_checkpoint import write_random_checkpoint

SEED_REQUESTS = json.loads(
    (Path(__file__).parents[1] / "contract" / "seed_requests.json").read_text()
)
START_TIMEOUT_S = 120
HYIMAGE = [sys.executable, "-m", "cli.app"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read(), response.headers["content-type"]


def post(url: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/v1", json.dumps(tasks).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        items: list[dict[str, Any]] = json.load(response)["data"]
        return items


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on the checkpoint of `make serve`; yields its base URL and process."""
    folder = tmp_path_factory.mktemp("served")
    write_random_checkpoint(folder / "tiny")
    url = f"http://127.0.0.1:{free_port()}"
    flags = ["--port", url.rsplit(":", 1)[1], "--checkpoint", str(folder / "tiny")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*HYIMAGE, "serve", *flags],
            env={
                **os.environ,
                "HYIMAGE_IMAGES__STORE": str(folder / "images"),
                # Its own: the published UUIDs would stay taken for a day in the working tree's.
                "HYIMAGE_TASKS__DATABASE_URL": f"sqlite:///{folder}/tasks.db",
                "HYIMAGE_KEYS__FILE": str(folder / "keys.json"),
            },
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        log_file = folder / "log"
        wait_until(lambda: is_ready(url, process, log_file), START_TIMEOUT_S, every_s=0.2)
        yield url, process
    finally:
        process.kill()
        process.wait(timeout=30)


def is_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        get(f"{url}/ready")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("request_body", SEED_REQUESTS)
def test_the_published_requests_return_images_of_their_size(
    served: tuple[str, object], request_body: dict[str, Any]
) -> None:
    (item,) = post(served[0], [request_body])
    content, media_type = get(item["imageURL"])
    assert media_type == "image/jpeg"
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (request_body["width"], request_body["height"])
        assert image.format == "JPEG"


@pytest.mark.slow
def test_three_results_differ_and_their_seeds_reproduce_them_to_the_byte(
    served: tuple[str, object],
) -> None:
    task = {**SEED_REQUESTS[0], "steps": 3, "outputFormat": "PNG", "outputType": "base64Data"}

    def generate(**changes: Any) -> list[dict[str, Any]]:
        return post(served[0], [{**task, "taskUUID": str(uuid.uuid4()), **changes}])

    three, again = generate(numberResults=3), generate(numberResults=3)
    images = [item["imageBase64Data"] for item in three]
    assert len(set(images)) == 3
    assert images == [item["imageBase64Data"] for item in again]
    singles = [generate(seed=item["seed"])[0]["imageBase64Data"] for item in three]
    assert singles == images


@pytest.mark.slow
def test_a_server_whose_checkpoint_is_damaged_stops_with_one_sentence(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "tiny")
    shard = next((tmp_path / "tiny").glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    done = subprocess.run(
        [*HYIMAGE, "serve", "--port", str(free_port()), "--checkpoint", str(tmp_path / "tiny")],
        capture_output=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    output = (done.stdout + done.stderr).decode().replace("\n", "")
    assert done.returncode == 2
    assert shard.name in output
    assert "truncated" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_terminated_server_takes_its_worker_with_it(
    served: tuple[str, subprocess.Popen[bytes]],
) -> None:
    _, process = served
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    children = [pid for t in threads for pid in (t / "children").read_text().split()]
    assert children
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
