"""The generated pages are those of the code, and leave out no setting, error or command."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cli.reference.commands_page import render_commands, walk_commands
from cli.reference.errors_page import render_errors
from cli.reference.pages import stale_pages, write_pages
from cli.reference.settings_page import render_settings
from server.runware.envelope import http_status
from server.runware.error_catalog import ERRORS, FAMILIES, OPENAI_ERRORS
from server.settings import Settings
from server.settings_faults import OTHER_VARIABLES

ROOT = Path(__file__).parents[3]
# Errors of commands and settings: one line on standard error, no code on the wire.
OF_OPERATORS = {"invalidSettings", "commandFailed"}
# Calls that make an error, and which of their arguments is the code.
MAKERS = {"TaskError": 0, "JobFailed": 1, "_refusal": 0, "_failed": 1, "fail": 0}


def settings() -> dict[str, Any]:
    """Return every setting by its dotted name."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        f"{section}.{name}": field
        for section, model in sections.items()
        if isinstance(model, type) and issubclass(model, BaseModel)
        for name, field in model.model_fields.items()
    }


def test_the_pages_in_docs_are_those_that_the_code_gives() -> None:
    assert stale_pages(ROOT / "docs") == [], "run python -m cli.reference"


def test_a_page_that_differs_or_is_missing_is_named(tmp_path: Path) -> None:
    write_pages(tmp_path)
    assert stale_pages(tmp_path) == []
    (tmp_path / "settings.md").write_text("old", encoding="utf-8")
    (tmp_path / "errors.md").unlink()
    assert stale_pages(tmp_path) == ["errors.md", "settings.md"]


def test_every_setting_is_listed_once_with_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.+) \| (.+) \| (.*) \|$", render_settings(), re.M)
    assert [name for name, *_ in rows] == list(settings())
    assert [name for name, *_, meaning in rows if not meaning] == []


def test_variables_that_are_no_settings_are_described() -> None:
    assert [name for name in OTHER_VARIABLES if f"`{name}`" not in render_settings()] == []


def codes_in(tree: ast.Module) -> Iterator[str]:
    """Yield the codes of errors that a module makes; an f-string's by what it begins with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            position = MAKERS.get(name, len(node.args))
            given = [*node.args[position : position + 1]]
            given += [word.value for word in node.keywords if word.arg == "code"]
            yield from (text for value in given for text in texts_of(value))
        elif isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code":
                    yield from texts_of(line.value)


def texts_of(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        yield from texts_of(value.values[0])


def codes_of_the_code() -> set[str]:
    modules = [
        m for folder in ("server", "pipeline", "model") for m in (ROOT / folder).rglob("*.py")
    ]
    trees = [ast.parse(module.read_text(encoding="utf-8")) for module in modules]
    return {code for tree in trees for code in codes_in(tree)} - OF_OPERATORS


def is_of_a_family(code: str) -> bool:
    """Return whether a code is `invalid` or `missing` with the name of a parameter, or open."""
    fields = "\n".join(
        (ROOT / "server" / "runware" / name).read_text(encoding="utf-8")
        for name in ("schemas.py", "other_tasks.py")
    )
    for family in FAMILIES:
        rest = code.removeprefix(family)
        if code == family or (
            rest != code and re.search(rf"^ +{rest[0].lower()}{rest[1:]}\b", fields, re.M)
        ):
            return True
    return False


def test_every_code_of_an_error_is_documented_and_no_other() -> None:
    made = codes_of_the_code()
    documented = {*ERRORS, *OPENAI_ERRORS}
    assert {code for code in made - documented if not is_of_a_family(code)} == set()
    written = "".join(
        module.read_text(encoding="utf-8")
        for folder in ("server", "pipeline", "model")
        for module in (ROOT / folder).rglob("*.py")
        if module.name != "error_catalog.py"
    )
    assert {code for code in documented if f'"{code}"' not in written} == set()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('raise TaskError("a", "b")', "a"),
        ('raise TaskError(f"missing{x}", "b")', "missing"),
        ('JobFailed(job_id=i, code="c", message="m")', "c"),
        ('replace(error, code="d")', "d"),
        ('class E(ValueError):\n    code = "e"', "e"),
    ],
)
def test_a_code_is_found_however_it_is_written(line: str, code: str) -> None:
    assert list(codes_in(ast.parse(line))) == [code]


def test_the_status_of_a_code_is_that_of_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", render_errors(), re.M)
    assert {code: int(status) for code, status, _ in rows} == {
        code: http_status(code) for code in (*ERRORS, *OPENAI_ERRORS)
    }
    assert {again for _, status, again in rows if status in ("429", "500", "503")} == {"yes"}


def test_every_command_has_a_section_with_all_its_options() -> None:
    page = render_commands()
    sections = dict(re.findall(r"^## (hyimage .+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    commands = dict(walk_commands())
    assert list(sections) == list(commands)
    for name, command in commands.items():
        missing = [
            option
            for parameter in command.params
            if parameter.param_type_name == "option"
            for option in parameter.opts
            if f"`{option}`" not in sections[name]
        ]
        assert missing == [], name
