"""`--help`: every command explains itself, with an example that can be run as it stands."""

import re
import shlex
from collections.abc import Iterator

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from cli.app import app

RUNNER = CliRunner()
WIDE = {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}


def list_commands(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from list_commands(command, (*path, name))
        else:
            yield *path, name


def find_command(path: tuple[str, ...]) -> TyperCommand:
    found: object = ROOT
    for name in path:
        assert isinstance(found, TyperGroup)
        found = found.commands[name]
    assert isinstance(found, TyperCommand)
    return found


def option_names(path: tuple[str, ...]) -> set[str]:
    names = {name for p in find_command(path).params for name in (*p.opts, *p.secondary_opts)}
    return {name for name in names if name.startswith("--")}


ROOT = get_command(app)
assert isinstance(ROOT, TyperGroup)
COMMANDS = sorted(list_commands(ROOT))


def test_every_command_is_there() -> None:
    benches = {
        "step",
        "serve",
        "text",
        "quality",
        "quantization",
        "loading",
        "adherence",
        "load",
        "compare",
    }
    assert {path for path in COMMANDS if len(path) == 2} == {
        *(("bench", name) for name in benches),
        *(("keys", name) for name in ("add", "change", "list", "remove")),
        ("config", "show"),
    }
    assert {path[0] for path in COMMANDS if len(path) == 1} == {
        "serve", "generate", "plan", "quantize", "calibrate", "verify", "record", "train-tiny",
        "first-contact", "status", "cancel", "download", "doctor", "ledger", "prove",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_names_every_option_and_says_what_the_command_does(path: tuple[str, ...]) -> None:
    short, long = (
        RUNNER.invoke(app, [*path, flag], env=WIDE, prog_name="hyimage")
        for flag in ("-h", "--help")
    )
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output
    command = find_command(path)
    assert [name for name in option_names(path) if name not in long.output] == []
    assert command.help is not None
    assert command.help.split(".")[0].split("\n")[0] in " ".join(long.output.split())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_example_in_the_help_of_a_command_is_a_valid_command_line(
    path: tuple[str, ...],
) -> None:
    command = find_command(path)
    match = re.search(r"Example: hyimage (.*)", command.help or "")
    assert match is not None
    words = shlex.split(match[1])
    assert words[: len(path)] == list(path)
    values = command.make_context("hyimage", words[len(path) :]).params
    assert all(word in option_names(path) for word in words if word.startswith("--"))
    assert values.keys() == {parameter.name for parameter in command.params}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_one_option_has_one_name_everywhere(path: tuple[str, ...]) -> None:
    assert not option_names(path) & {"--cfg", "--cfg-scale", "--count", "--output-json"}
    arguments = {p.name for p in find_command(path).params if p.param_type_name == "argument"}
    assert "checkpoint" not in arguments


def test_few_values_are_listed_in_the_help() -> None:
    choices = {
        ("plan",): ("auto|none|fp8|int8|int4", "float32|bfloat16"),
        ("quantize",): ("fp8|int8|int4",),
        ("generate",): ("off|recaption|think", "none|low|medium|high"),
        ("bench", "step"): ("float32|bfloat16|float16",),
    }
    for path, texts in choices.items():
        output = RUNNER.invoke(app, [*path, "-h"], env=WIDE).output
        assert all(text in output for text in texts), output


def test_the_version_is_the_packages_own() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"hyimage \d+\.\d+\.\d+\n", result.output)
