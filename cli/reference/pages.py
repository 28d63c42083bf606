"""The generated pages by name, written into a folder or compared with what is there."""

from collections.abc import Callable
from pathlib import Path

from cli.reference.commands_page import render_commands
from cli.reference.errors_page import render_errors
from cli.reference.settings_page import render_settings

PAGES: dict[str, Callable[[], str]] = {
    "commands.md": render_commands,
    "errors.md": render_errors,
    "settings.md": render_settings,
}


def write_pages(folder: Path) -> None:
    """Write every page into a folder."""
    for name, render in PAGES.items():
        (folder / name).write_text(_with_mark(render()), encoding="utf-8")


def stale_pages(folder: Path) -> list[str]:
    """Return the names of the pages that are missing or differ from what the code gives."""
    return [name for name, render in PAGES.items() if _read(folder / name) != _with_mark(render())]


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8") if page.exists() else ""


def _with_mark(text: str) -> str:
    mark = "<!-- Written by `python -m cli.reference`; change the code that it describes. -->"
    return f"{text.rstrip()}\n\n{mark}\n"
