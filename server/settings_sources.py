"""Where the effective settings come from: default, file, variable or flag; secrets hidden."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from server.settings_faults import PREFIX
from server.settings_file import IN_DATA_DIR

Kind = Literal["default", "file", "variable", "flag"]

# What stands before the @ of a URL, and values in its query whose name says that they are secret.
_USER_INFO = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_QUERY = re.compile(r"([?&][^=&#]*(?:password|secret|token|key)[^=&#]*=)[^&#]+", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sourced:
    """The value of a setting, and what set it: a file, a variable, a flag; for a default why."""

    name: str
    value: Any
    kind: Kind
    source: str


def list_sourced(
    settings: BaseModel, file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> list[Sourced]:
    """Return every setting with its source, secrets hidden, in the order of the sections.

    `flags` are those of `load_settings`, section__field=value; the settings are what it returned.
    """
    given = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    variables = {name.upper(): name for name in environment}
    found: list[Sourced] = []
    for section in type(settings).model_fields:
        values = getattr(settings, section)
        whole = variables.get(f"{PREFIX}{section}".upper())
        in_whole = _members(environment[whole]) if whole else ()
        for field in type(values).model_fields:
            variable = variables.get(f"{PREFIX}{section}__{field}".upper())
            kind: Kind = "default"
            source = _default_of(section, field, file)
            if flags.get(f"{section}__{field}") is not None:
                kind, source = "flag", f"--{field.replace('_', '-')}"
            elif variable is not None:
                kind, source = "variable", variable
            elif whole is not None and field in in_whole:
                kind, source = "variable", whole
            elif field in given.get(section, {}):
                kind, source = "file", str(file)
            value = values.model_dump(mode="json")[field]
            name = f"{section}.{field}"
            found.append(Sourced(name=name, value=hide_secrets(value), kind=kind, source=source))
    return found


def hide_secrets(value: Any) -> Any:
    """Return a value without the passwords and keys of the URLs in it."""
    match value:
        case str():
            return _SECRET_QUERY.sub(r"\1***", _USER_INFO.sub("***@", value))
        case list():
            return [hide_secrets(one) for one in value]
        case dict():
            return {key: hide_secrets(one) for key, one in value.items()}
    return value


def _default_of(section: str, field: str, file: Path | None) -> str:
    if (section, field) in IN_DATA_DIR:
        return "in server.data_dir"
    if (section, field) == ("server", "data_dir") and file is not None:
        return f"beside {file}"
    return ""


def _members(text: str) -> list[str]:
    values = json.loads(text)
    return list(values) if isinstance(values, dict) else []
