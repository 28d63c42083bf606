"""The image: its command, environment and health check, as far as they run without Docker."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", TEXT).splitlines()


def instruction(name: str) -> str:
    (line,) = [line for line in LINES if line.startswith(f"{name} ")]
    return line.removeprefix(f"{name} ")


def environment() -> dict[str, str]:
    pairs = [line.removeprefix("ENV ").split() for line in LINES if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in pairs for pair in line)


def test_a_container_without_a_key_does_not_start_and_says_how() -> None:
    program, *arguments = json.loads(instruction("CMD"))
    assert program == "hyimage"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HYIMAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**inherited, **environment(), "PYTHONSAFEPATH": "", "HYIMAGE_SERVER__DATA_DIR": "/no"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "HYIMAGE_API_KEYS" in done.stderr


def test_the_health_check_asks_for_a_page_that_needs_no_checkpoint(client: TestClient) -> None:
    (path,) = re.findall(r"127\.0\.0\.1:8000(/\w+)", instruction("HEALTHCHECK"))
    assert path == "/health"
    assert client.get(path).status_code == 200


def test_the_data_are_in_a_volume_of_the_user_that_serves() -> None:
    assert environment()["HYIMAGE_SERVER__DATA_DIR"] == instruction("VOLUME")
    assert f"install -d -o {instruction('USER')} {instruction('VOLUME')}" in TEXT


def test_every_package_and_file_that_is_copied_exists() -> None:
    for line in LINES:
        if line.startswith("COPY "):
            *sources, _ = line.removeprefix("COPY ").split()
            assert all((ROOT / source).exists() for source in sources), line
