"""Settings, commands and paths that README, CONTRIBUTING and docs/ name exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from cli.app import app
from server.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
IDS = [page.name for page in PAGES]
SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
# First folder of a path in the repository.
FOLDERS = (
    "cache", "checkpoints", "cli", "configs", "deploy", "docs", "model", "pipeline", "schedulers",
    "server", "tests", "tools", "training",
)  # fmt: skip
# Parameters of a task that look like settings.
PARAMETERS = ("safety.checkContent", "safety.mode")


def code_spans(page: Path) -> list[str]:
    """Return what a page sets as code: inline spans and the lines of blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(\S.*)$", text, flags=re.M)
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", without_blocks)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [*(" ".join(span.split()) for span in inline), *indented, *lines]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    pattern = rf"(?<![\w./-])({'|'.join(SECTIONS)})\.(?!py\b)([a-z]\w*)(?![\w(./])"
    code = "\n".join(code_spans(page))
    named = [match for match in re.findall(pattern, code) if ".".join(match) not in PARAMETERS]
    named += [(a.lower(), b.lower()) for a, b in re.findall(r"HYIMAGE_([A-Z]+)__([A-Z_]+)", code)]
    missing = [
        f"{section}.{key}" for section, key in named if key not in SECTIONS[section].model_fields
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_that_a_page_names_exists_with_its_options(page: Path) -> None:
    calls = re.findall(r"(?:^|bin/|\s)hyimage ([a-z].*)", "\n".join(code_spans(page)), flags=re.M)
    assert [fault for call in calls for fault in faults_of(call)] == []


def faults_of(call: str) -> list[str]:
    """Return what the words after `hyimage` have that the command does not take."""
    # Typer's classes of commands and parameters are not click's, hence Any.
    command: Any = typer.main.get_command(app)
    words = shlex.split(call.partition(" #")[0])
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if name not in command.commands:
            return [f"{call}: no command {name}"]
        command = command.commands[name]
    options = {
        name: parameter
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    names = [word for word in words if word.startswith("-") and "..." not in word]
    faults = [f"{call}: no option {name}" for name in names if name not in options]
    if not faults:
        values = {
            index + 1
            for index, word in enumerate(words)
            if word in options and not options[word].is_flag
        }
        arguments = [
            word
            for index, word in enumerate(words)
            if index not in values and not word.startswith("-")
        ]
        num_taken = sum(parameter.param_type_name == "argument" for parameter in command.params)
        if len(arguments) > num_taken:
            faults.append(f"{call}: {len(arguments)} arguments, at most {num_taken} are taken")
    return faults


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = {
        match.rstrip(".,:")
        for match in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*", text)
    }
    linked = set(re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text))
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in linked if not (page.parent / link).exists()]
    assert missing == []
