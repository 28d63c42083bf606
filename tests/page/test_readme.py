"""README: its commands do the same when they are run again, and its figures are those measured."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline.vocabulary import Vocabulary, read_vocabulary
from tests.page.conftest import KEY
from tests.system.conftest import ServerProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# Not run here: what each of them begins with, and why.
NOT_RUN = {
    "make serve": "the tests of the page use the server that it starts",
    "make test": "this is a part of it",
    ".venv/bin/hyimage verify": "half a minute; tests/golden checks the same recordings",
    ".venv/bin/hyimage bench": "minutes each; tests/unit/tools has their parts",
    ".venv/bin/hyimage calibrate": "minutes; it writes into the checkpoint",
}


def list_commands() -> list[str]:
    """Return the shell commands of README, each as one string with its line ends."""
    lines = re.findall(r"^ {4}(.*)$", README, flags=re.M)
    commands: list[str] = []
    for line in lines:
        if line.startswith(("make ", "curl ", ".venv/bin/")):
            commands.append(line)
        elif commands and commands[-1].count("'") % 2:  # a quoted body goes on
            commands[-1] += f"\n{line}"
    return commands


def command_of(start: str) -> str:
    (command,) = [command for command in list_commands() if command.startswith(start)]
    return command


def run(arguments: list[str], folder: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the cores are shared with other tests
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def hyimage(command: str) -> list[str]:
    """Return a command of README as a call of this interpreter."""
    return [sys.executable, "-m", "cli.app", *shlex.split(command, comments=True)[1:]]


def test_every_command_of_readme_is_run_here_or_named_as_one_that_is_not() -> None:
    run_here = ("curl ", ".venv/bin/hyimage generate")
    commands = list_commands()
    assert [c for c in commands if not c.startswith((*run_here, *NOT_RUN))] == []
    assert [start for start in NOT_RUN if not any(c.startswith(start) for c in commands)] == []


@pytest.mark.slow
def test_the_request_of_readme_gives_the_same_image_each_time(server: ServerProcess) -> None:
    command = command_of("curl ").replace("http://127.0.0.1:8000", server.url)
    command = command.replace("curl -s", f"curl -s -H 'Authorization: Bearer {KEY}'")
    images: list[bytes] = []
    for _ in range(2):
        (item,) = json.loads(run(["bash", "-c", command]))["data"]
        with urllib.request.urlopen(item["imageURL"], timeout=30) as response:
            images.append(response.read())
    assert images[0] == images[1]
    assert images[0].startswith(b"\xff\xd8\xff"), "a JPEG"


@pytest.mark.slow
def test_the_command_of_readme_draws_the_same_image_each_time(tmp_path: Path) -> None:
    arguments = hyimage(command_of(".venv/bin/hyimage generate"))
    arguments += ["--checkpoint", str(ROOT / "checkpoints" / "tiny")]
    outputs, images = [], []
    for _ in range(2):
        outputs.append(run(arguments, tmp_path))
        (image,) = tmp_path.iterdir()
        images.append(image.read_bytes())
    assert outputs[0] == outputs[1]
    assert images[0] == images[1]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    vocabulary = read_vocabulary(ROOT / "checkpoints" / "tiny")
    assert vocabulary is not None
    return vocabulary


@pytest.mark.parametrize(("group", "label"), [("Things", "things"), ("Colours", "colours")])
def test_the_words_of_readme_are_those_of_the_checkpoint(
    vocabulary: Vocabulary, group: str, label: str
) -> None:
    listed = re.search(rf"^- \*\*{label}\*\*[^:]*: ([^;]+);$", README, flags=re.M)
    assert listed is not None
    assert listed[1].split(", ") == vocabulary.words()[group]


def test_the_places_of_readme_are_those_of_the_checkpoint(vocabulary: Vocabulary) -> None:
    listed = re.search(r"^- \*\*places\*\*: (.+), or a plain", README, flags=re.M)
    assert listed is not None
    places = {group.name: group for group in vocabulary.groups}["Places"].words
    assert len(listed[1].split(", ")) == len(places)
    for name, phrase in zip(listed[1].split(", "), places, strict=True):
        assert name in (*places[phrase], phrase)


@pytest.mark.slow
def test_the_parameters_of_readme_are_those_that_the_server_counts(server: ServerProcess) -> None:
    counted = re.search(r"([\d.]+) M parameters", server.get("/ready")[0].decode())
    assert counted is not None
    assert f"{counted[1]} million parameters" in README
    assert f"| tiny (default) | {counted[1]} M |" in README


def test_the_score_of_readme_is_the_measured_one() -> None:
    page = (ROOT / "docs" / "tiny_checkpoint.md").read_text("utf-8")
    (measured,) = re.findall(r"^\| \*\*.*\*\*(\d+) %\*\* \|$", page, flags=re.M)
    stated = re.search(r"captions that were not in its training set, (\d+) % come out", README)
    assert stated is not None
    assert stated[1] == measured
