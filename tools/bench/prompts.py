"""Prompts of the measurements: a file's, or the list that comes with the product."""

from importlib import resources
from pathlib import Path

from server.runware.errors import CommandError


def read_prompts(path: Path | None, count: int) -> list[str]:
    """Return the first prompts of a file, one a line, or of the list that comes with the product.

    Raises:
        CommandError: the file cannot be read, or holds fewer.
    """
    prompts = read_all_prompts(path)
    if len(prompts) < count:
        raise CommandError(f"{path or 'the list'} holds {len(prompts)} prompts; {count} are needed")
    return prompts[:count]


def read_all_prompts(path: Path | None) -> list[str]:
    """Return every prompt of a file, or of the product's list.

    Raises:
        CommandError: the file cannot be read.
    """
    try:
        if path is None:
            text = resources.files("tools.bench").joinpath("prompts.txt").read_text("utf-8")
        else:
            text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CommandError(f"{path} cannot be read: {e}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
