"""Faults of settings in words: unknown, renamed, gone, or out of range, and their source."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from pydantic_core import ErrorDetails

PREFIX = "HYIMAGE_"
# Variables of ours that are no settings: the keys of a server, and the key of a client.
OTHER_VARIABLES = ("HYIMAGE_API_KEYS", "HYIMAGE_API_KEY")

# Old names, and the new ones that their refusal names.
_RENAMED = {
    "server.is_open": "server.allow_unauthenticated",
    "server.trusts_proxy_headers": "server.trust_proxy_headers",
    "images.folder": "images.store",
    "worker.memory_gb": "worker.device_memory_gb",
    "worker.cfg_ranks": "worker.cfg_parallel_size",
    "worker.tensor_ranks": "worker.tensor_parallel_size",
    "worker.compile_experts": 'worker.compile_kernels ("auto", "on" or "off")',
    "worker.expert_split": 'worker.expert_parallel (true for "expert", false for "width")',
}
_GONE = {
    "egress.webhook_first_delay_s": "tries follow the hosted service's times, 250 ms and doubling",
}


def describe_faults(
    faults: Iterable[ErrorDetails], file: object, environment: Mapping[str, str]
) -> str:
    """Return what is wrong, and whether it stands in a variable or in the file."""
    variables = {name.upper() for name in environment}
    described = []
    for fault in faults:
        section, *field = map(str, fault["loc"])
        of_field, of_section = f"{PREFIX}{section}__{''.join(field[:1])}", f"{PREFIX}{section}"
        source = next((n for n in (of_field.upper(), of_section.upper()) if n in variables), None)
        where = f"settings from {file}" if source is None else f"variable {source}"
        described.append(f"{where}: {_describe(fault)}")
    return "; ".join(described)


def unknown_variables(environment: Iterable[str], fields: Mapping[str, Sequence[str]]) -> str:
    """Return what is wrong with variables of ours that name no section; empty if there are none.

    `fields` are those of each section.
    """
    known = [f"{PREFIX}{s}__{field}".upper() for s, names in fields.items() for field in names]
    faults = []
    for name in sorted(environment):
        section = name.upper().removeprefix(PREFIX).partition("__")[0].lower()
        is_ours = name.upper().startswith(PREFIX) and name not in OTHER_VARIABLES
        if is_ours and section not in fields:
            near = get_close_matches(name.upper(), [*known, *OTHER_VARIABLES], n=1)
            hint = f"did you mean {near[0]}?" if near else f"write {PREFIX}SECTION__FIELD"
            faults.append(f"variable {name} is no setting; {hint}")
    return "; ".join(faults)


def describe_unreadable(message: str, environment: Iterable[str]) -> str:
    """Return which variables may hold the list or table that pydantic-settings could not read."""
    found = re.search(r'field "(\w+)"', message)
    section = found[1] if found else ""
    names = [n for n in sorted(environment) if n.upper().startswith(f"{PREFIX}{section}".upper())]
    return (
        f"a list or table in {' or '.join(names)} cannot be read: it is written as JSON in a "
        """variable, for example '["10.1.0.0/16"]'"""
    )


def _describe(fault: ErrorDetails) -> str:
    name = ".".join(map(str, fault["loc"]))
    if name in _RENAMED:
        return f"{name} is called {_RENAMED[name]} now; rename it"
    if name in _GONE:
        return f"{name} is gone ({_GONE[name]}); remove it"
    return f"{name}: {fault['msg']} (got {fault['input']!r})"
