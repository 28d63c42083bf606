"""The images: commands, environment and health check, as far as they run without Docker."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TARGETS = ("cpu", "cuda")


def lines_of(target: str) -> list[str]:
    """Return the instructions of a target, those of the stage that it begins with first."""
    stages: dict[str, list[str]] = {}
    for stage in re.split(r"^(?=FROM )", re.sub(r"\\\n\s*", "", TEXT), flags=re.M)[1:]:
        first, *rest = [line for line in stage.splitlines() if line and not line.startswith("#")]
        _, base, _, name = first.split()
        stages[name] = [*stages.get(base, []), *rest]
    return stages[target]


def instruction(name: str, target: str) -> str:
    (line,) = [line for line in lines_of(target) if line.startswith(f"{name} ")]
    return line.removeprefix(f"{name} ")


def environment(target: str) -> dict[str, str]:
    lines = [line for line in lines_of(target) if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split()[1:])


@pytest.mark.parametrize("target", TARGETS)
def test_a_container_without_a_key_does_not_start_and_says_how(target: str) -> None:
    program, *arguments = json.loads(instruction("CMD", target))
    assert program == "hyimage"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HYIMAGE_")}
    of_the_image = {**environment(target), "PYTHONSAFEPATH": "", "HYIMAGE_SERVER__DATA_DIR": "/no"}
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**inherited, **of_the_image},
    )  # fmt: skip
    assert done.returncode == 2
    assert "HYIMAGE_API_KEYS" in done.stderr


def test_the_image_that_is_built_without_a_target_is_the_one_for_a_cpu() -> None:
    assert re.findall(r"^FROM \S+ AS (\w+)$", TEXT, flags=re.M)[-1] == "cpu"


def test_the_health_check_asks_for_a_page_that_needs_no_checkpoint(client: TestClient) -> None:
    check = instruction("HEALTHCHECK", "cpu")
    (path,) = re.findall(r"127\.0\.0\.1:8000(/\w+)", check)
    assert path == "/health"
    assert client.get(path).status_code == 200
    (seconds,) = re.findall(r"--start-period=(\d+)s", check)
    assert int(seconds) >= 300


@pytest.mark.parametrize("target", TARGETS)
def test_the_data_are_in_a_volume_of_the_user_that_serves(target: str) -> None:
    volume, user = instruction("VOLUME", target), instruction("USER", target)
    assert environment(target)["HYIMAGE_SERVER__DATA_DIR"] == volume
    assert f"install -d -o {user} -g {user} {volume}" in TEXT
    assert int(user) > 0
    last = [line.split()[0] for line in lines_of(target)].index("USER")
    assert [line for line in lines_of(target)[last:] if line.startswith("RUN ")] == []


def test_only_the_image_for_cuda_has_a_compiler() -> None:
    assert [t for t in TARGETS if any("gcc" in line for line in lines_of(t))] == ["cuda"]


def test_what_is_copied_exists_and_is_all_that_is_packaged() -> None:
    allowed = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    assert [path for path in allowed if not (ROOT / path).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(allowed)
    assert {"configs", "checkpoints/tiny"} <= set(allowed)
    copied = " ".join(line for line in lines_of("cpu") if line.startswith("COPY ")).split()
    assert {name for name in copied if name[0].isalpha() and name != "COPY"} <= set(allowed)


@pytest.mark.parametrize("target", TARGETS)
def test_the_extras_of_an_image_exist(target: str) -> None:
    (extras,) = re.findall(r'^ARG EXTRAS="([\w,]+)"$', "\n".join(lines_of(target)), flags=re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
