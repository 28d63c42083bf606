"""System prompts of a checkpoint, parsed from its Python file without running it."""

import ast
from pathlib import Path

from model.errors import ConfigError
from model.template import TextTask

FILE_NAME = "system_prompt.py"

# The literals of each task, by a part of their names; the first match wins.
_MARKS: dict[str, tuple[str, ...]] = {
    "think": ("think_recaption", "think", "unified"),
    "recaption": ("en_recaption", "recaption", "unified"),
    "image": ("vanilla", "unified"),
}


def read_system_prompts(folder: Path) -> dict[str, str]:
    """Return the string literals that the checkpoint's file assigns to names; empty without one.

    Nothing in the file is executed.

    Raises:
        ConfigError: the file is not Python text.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as e:
        raise ConfigError(f"{path} cannot be read: {e}; download it again, or delete it") from None
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    found[target.id] = node.value.value
    return found


def pick_system_prompt(prompts: dict[str, str], wanted: str, task: TextTask) -> str | None:
    """Return the system prompt of a task.

    `wanted` is the checkpoint's `use_system_prompt`: "None", "dynamic" for that of the task,
    or a part of a literal's name.

    Raises:
        ConfigError: none of the literals is the wanted one.
    """
    if wanted in ("", "None", "none"):
        return None
    marks = _MARKS.get(task, ("vanilla",)) if wanted == "dynamic" else (wanted,)
    for mark in marks:
        for name, text in prompts.items():
            if mark in name.lower() and ("think" in name.lower()) == ("think" in mark):
                return text.strip()
    if wanted == "dynamic":
        return None
    raise ConfigError(
        f"no system prompt named {wanted!r}; {FILE_NAME} of the checkpoint has: "
        f"{', '.join(sorted(prompts)) or 'none'}"
    )
