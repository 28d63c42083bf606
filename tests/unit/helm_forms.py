"""The few forms of Helm's templates that the chart uses, rendered without Helm.

What it does not know is an error, so a template that needs more than this fails its test rather
than pass unread. Helm itself rendered the chart by hand (deploy/README.md).
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml


class UnknownFormError(ValueError):
    """A template has a form that this renderer does not know."""


def render(template: str, values: Mapping[str, Any], release: str) -> str:
    """Return a rendered template.

    Raises:
        UnknownFormError: it has another form than values, functions of `_FUNCTIONS`, if and end.
    """
    scope = {"Values": values, "Release": {"Name": release}}
    out, is_shown, at = "", [True], 0
    for found in re.finditer(r"\{\{(-?) *(.*?) *(-?)\}\}", template, re.S):
        before = template[at : found.start()]
        out += _shown(before.rstrip() if found[1] else before, is_shown)
        at = found.end()
        if found[3]:
            at += len(template[at:]) - len(template[at:].lstrip())
        action = found[2]
        if action.startswith("if "):
            is_shown.append(bool(_value(action.removeprefix("if "), scope)))
        elif action == "end":
            is_shown.pop()
        else:
            out += _shown(str(_evaluate(action, scope)), is_shown)
    if len(is_shown) != 1:
        raise UnknownFormError("if and end do not match")
    return out + template[at:]


def _shown(text: str, is_shown: list[bool]) -> str:
    return text if all(is_shown) else ""


def _evaluate(action: str, scope: Mapping[str, Any]) -> Any:
    """Return the value of a pipeline."""
    first, *rest = [part.split() for part in action.split("|")]
    value: Any
    if first[0] == "div":
        value = _value(first[1], scope) // int(first[2])
    elif len(first) == 1:
        value = _value(first[0], scope)
    else:
        raise UnknownFormError(action)
    for name, *arguments in rest:
        if name not in _FUNCTIONS:
            raise UnknownFormError(action)
        value = _FUNCTIONS[name](value, *arguments)
    return value


def _value(path: str, scope: Mapping[str, Any]) -> Any:
    if not re.fullmatch(r"(\.\w+)+", path):
        raise UnknownFormError(path)
    value: Any = scope
    for name in path[1:].split("."):
        if name not in value:
            raise UnknownFormError(f"{path}: there is no {name}")
        value = value[name]
    return value


def _nindent(text: str, width: str) -> str:
    return "".join(f"\n{' ' * int(width)}{line}" for line in text.split("\n"))


_FUNCTIONS: dict[str, Callable[..., str]] = {
    "nindent": _nindent,
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "toYaml": lambda value: yaml.safe_dump(value, sort_keys=True).rstrip("\n"),
}
