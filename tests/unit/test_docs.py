"""What README, CONTRIBUTING, docs/ and deploy/ name exists: settings, commands, paths, links."""

import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from cli.app import app
from server.settings import Settings
from server.settings_faults import OTHER_VARIABLES
from tests.unit.page_links import LinkFaults, fault_of_link, links_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
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
PLACEHOLDER = "HYIMAGE_SECTION__SETTING"
# Pages of what once was: they name settings, commands and paths that are gone.
HISTORY = ("CHANGELOG.md",)
# What a reader makes, and git ignores.
MADE = ("deploy/.env", "deploy/server.env", "checkpoints/instruct")
PRESENT = [page for page in PAGES if page.name not in HISTORY]
PRESENT_IDS = [str(page.relative_to(ROOT)) for page in PRESENT]


def code_spans(page: Path) -> list[str]:
    """Return what a page sets as code: inline spans and the lines of blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(\S.*)$", text, flags=re.M)
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", without_blocks)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [*(" ".join(span.split()) for span in inline), *indented, *lines]


@pytest.mark.parametrize("page", PRESENT, ids=PRESENT_IDS)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    pattern = rf"(?<![\w./-])({'|'.join(SECTIONS)})\.(?!py\b)([a-z]\w*)(?![\w(./])"
    code = "\n".join(code_spans(page))
    named = [match for match in re.findall(pattern, code) if ".".join(match) not in PARAMETERS]
    missing = [
        f"{section}.{key}" for section, key in named if key not in SECTIONS[section].model_fields
    ]
    assert missing == []


@pytest.mark.parametrize("page", PRESENT, ids=PRESENT_IDS)
def test_every_variable_that_a_page_names_exists(page: Path) -> None:
    known = {
        f"HYIMAGE_{section}__{name}".upper()
        for section, model in SECTIONS.items()
        for name in model.model_fields
    }
    named = re.findall(r"\bHYIMAGE_[A-Z_]*[A-Z](?!\w)", page.read_text(encoding="utf-8"))
    assert set(named) - known - {*OTHER_VARIABLES, PLACEHOLDER} == set()


@pytest.mark.parametrize("page", PRESENT, ids=PRESENT_IDS)
def test_every_command_that_a_page_names_exists_with_its_options(page: Path) -> None:
    calls = re.findall(r"(?:^|bin/|\s)hyimage ([a-z].*)", "\n".join(code_spans(page)), flags=re.M)
    assert [fault for call in calls for fault in faults_of(call)] == []


@cache
def _command() -> Any:
    """Return the command. Typer's classes are not click's, hence Any."""
    return typer.main.get_command(app)


def faults_of(call: str) -> list[str]:
    """Return what the words after `hyimage` have that the command does not take."""
    command = _command()
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


def test_a_wrong_command_is_found() -> None:
    assert faults_of("serve --porte 9000") == ["serve --porte 9000: no option --porte"]
    assert faults_of("server") == ["server: no command server"]
    assert faults_of("status URL URL") == ["status URL URL: 2 arguments, at most 1 are taken"]
    assert faults_of("serve --config configs/tiny.toml --port 9000") == []


@pytest.mark.parametrize("page", PRESENT, ids=PRESENT_IDS)
def test_every_target_extra_and_module_that_a_page_names_exists(page: Path) -> None:
    code = "\n".join(code_spans(page))
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    missing = [f"make {t}" for t in re.findall(r"^make ([a-z][\w-]*)", code, flags=re.M)
               if t not in targets]  # fmt: skip
    named = re.findall(r'"\.\[([\w,]+)\]"|EXTRAS=([\w,]+)', code)
    missing += [e for both in named for e in "".join(both).split(",") if e not in extras]
    modules = re.findall(rf"python -m ((?:{'|'.join(FOLDERS)})(?:\.\w+)*)", code)
    missing += [
        name
        for name in modules
        if not (ROOT / f"{name.replace('.', '/')}.py").exists()
        and not (ROOT / name.replace(".", "/") / "__main__.py").exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PRESENT, ids=PRESENT_IDS)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = {
        match.rstrip(".,:")
        for match in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*", text)
    }
    assert [path for path in sorted(paths - set(MADE)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """Files and anchors of the repository; addresses elsewhere are not looked up."""
    faults = [fault_of_link(page, link) for link in links_of(page.read_text(encoding="utf-8"))]
    assert [fault for fault in faults if fault is not LinkFaults.NONE] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One: two & three\n\n## One: two & three\n", "utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#one-two-three) [b](there.md#two) [c](gone.md) [d](#here)\n"
        '<img src="gone.webp">\n`[e](code.md)`\n\n    [f](code.md)\n\n[g](https://example.org)\n',
        "utf-8",
    )
    found = {link: fault_of_link(page, link) for link in links_of(page.read_text("utf-8"))}
    assert found == {
        "there.md#one-two-three": LinkFaults.NO_ANCHOR,  # GitHub's is one-two--three
        "there.md#two": LinkFaults.NO_ANCHOR,
        "gone.md": LinkFaults.NO_FILE,
        "#here": LinkFaults.NO_ANCHOR,
        "gone.webp": LinkFaults.NO_FILE,
        "https://example.org": LinkFaults.NONE,
    }
