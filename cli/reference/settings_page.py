"""The settings reference: one table a section, read from the settings' own JSON schema."""

import json
from typing import Any

from server.settings import Settings
from server.settings_faults import PREFIX

_INTRODUCTION = f"""\
# Settings

Every setting of `hyimage serve`. A section is a table of the TOML file that `--config` names, and
a setting a key in it. Each can be set by a variable too, `{PREFIX}SECTION__SETTING`, for example
`HYIMAGE_SERVER__PORT=9000`; lists and tables are JSON there. A variable overrides the file, and a
flag of [hyimage serve](commands.md#hyimage-serve) both. An unknown name is refused, with what it
may have been meant to be. [Operating](operating.md) says what the settings do together.

Two variables are no settings: `HYIMAGE_API_KEYS` holds keys of a server, separated by commas,
beside those of `keys.file`; `HYIMAGE_API_KEY` is the key that `hyimage status`, `cancel` and
`bench load` send.
"""
_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def render_settings() -> str:
    """Return the page as Markdown."""
    schema = Settings.model_json_schema()
    parts = [_INTRODUCTION]
    for section, reference in schema["properties"].items():
        fields = schema["$defs"][reference["$ref"].rsplit("/", 1)[-1]]
        parts.append(_render_section(section, fields, schema["$defs"]))
    return "\n".join(parts)


def _render_section(section: str, fields: dict[str, Any], definitions: dict[str, Any]) -> str:
    rows = [
        f"| `{section}.{name}` | {_kind(field, definitions)} | {_default(field)} "
        f"| {field.get('description', '')} |"
        for name, field in fields["properties"].items()
    ]
    return "\n".join(
        [
            f"## [{section}]",
            "",
            " ".join(fields["description"].split()),
            "",
            "| setting | value | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _kind(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return what a setting takes, in words."""
    if "$ref" in field:
        return _kind(definitions[field["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in field:
        return " or ".join(_kind(one, definitions) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"list of {_kind(field['items'], definitions)}"
    if field["type"] == "object":
        return "table"
    bounds = [f"{words} {field[key]}" for key, words in _BOUNDS.items() if key in field]
    return ", ".join([_WORDS.get(field["type"], field["type"]), *bounds])


def _default(field: dict[str, Any]) -> str:
    if field.get("default") is None:  # made anew for each object
        return "`{}`"
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"
