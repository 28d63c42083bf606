"""The command reference: arguments and options of every `hyimage` command, from its own help."""

from collections.abc import Iterator
from typing import Any, get_args

import typer

from cli.app import app

_INTRODUCTION = """\
# Commands

`hyimage COMMAND --help` prints the same. In a checkout the command is `.venv/bin/hyimage`, or
`hyimage` once the environment is active (`. .venv/bin/activate`). Exit statuses are in
[Errors](errors.md#elsewhere).
"""
_UNITS = {"str": "text", "int": "integer", "float": "number", "Path": "path"}


def render_commands() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION]
    parts += [_render(name, command) for name, command in walk_commands()]
    return "\n".join(parts)


def walk_commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, by its name with those of its groups.

    Typer's classes of commands and parameters are not click's, hence Any.
    """
    yield from _walk("hyimage", typer.main.get_command(app))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each, inner in command.commands.items():
        if not inner.hidden:
            yield from _walk(f"{name} {each}", inner)


def _render(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not parameter.hidden]
    lines = [f"## {name}", ""]
    for paragraph in command.help.split("\n\n"):
        words = " ".join(paragraph.split())
        example = words.removeprefix("Example: ")
        lines += [words, ""] if example == words else [f"    {example}", ""]
    if shown:
        lines += ["| argument or option | value | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(parameter) for parameter in shown]
        lines += [""]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    if parameter.envvar:
        meaning += f" Variable: `{parameter.envvar}`."
    return f"| {names} | {_value(parameter)} | {_default(parameter)} | {meaning} |"


def _value(parameter: Any) -> str:
    """Return what a parameter takes, in words."""
    if getattr(parameter, "is_flag", False):
        return ""
    annotation = parameter.type_descriptor.annotation
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    if inner and all(isinstance(kind, str) for kind in inner):
        words = ", ".join(f"`{choice}`" for choice in inner)
    else:
        kind = next(iter(inner), annotation)
        choices = [c for c in get_args(kind) if isinstance(c, str)] or list(
            getattr(kind, "__members__", ())
        )
        name = getattr(kind, "__name__", "text")
        words = ", ".join(f"`{c}`" for c in choices) or _UNITS.get(name, name)
    bounds = [
        f"{word} {limit}"
        for word, limit in (("at least", parameter.min), ("at most", parameter.max))
        if limit is not None
    ]
    repeated = ["may be repeated"] if getattr(parameter, "multiple", False) else []
    return ", ".join([words, *bounds, *repeated])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if getattr(parameter, "is_flag", False):
        return "on" if default and parameter.secondary_opts else ""
    if default is None or default == () or callable(default) or not parameter.show_default:
        return ""
    return f"`{default}`"
