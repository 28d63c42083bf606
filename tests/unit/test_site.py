"""The documentation as a site: it builds without a warning, and a broken link would be one."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
HAS_MKDOCS = importlib.util.find_spec("mkdocs") is not None
HAS_MATERIAL = importlib.util.find_spec("material") is not None

needs_mkdocs = pytest.mark.skipif(
    not HAS_MKDOCS, reason="mkdocs is not installed; the extra `test` has it"
)


def pages_of(menu: Any) -> list[str]:
    """Return the pages that a menu leads to."""
    if isinstance(menu, str):
        return [menu]
    entries = menu.values() if isinstance(menu, dict) else menu
    return [page for entry in entries for page in pages_of(entry)]


def build(docs: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Build a site as `make docs` does; with MkDocs' own theme where Material is not installed."""
    config = {**CONFIG, "docs_dir": str(docs), "site_dir": str(folder / "site")}
    config["hooks"] = [str(ROOT / hook) for hook in CONFIG["hooks"]]
    if not HAS_MATERIAL:
        config["theme"] = {"name": "mkdocs", "highlightjs": False}
    file = folder / "mkdocs.yml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "-f", str(file)],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@needs_mkdocs
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path)
    assert (done.returncode, re.findall(r"WARNING.*|ERROR.*", done.stderr)) == (0, [])
    assert "Documentation built" in done.stderr
    built = {str(page.relative_to(tmp_path / "site")) for page in tmp_path.rglob("*.html")}
    # README.md is the index of its folder.
    wanted = [page.replace("README.md", "index.md") for page in pages_of(CONFIG["nav"])]
    assert {page.replace(".md", ".html") for page in wanted} <= built
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="contributing.html"' in home
    elsewhere = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', home)
    assert elsewhere == [], "the site loads something from another host"


@needs_mkdocs
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "index.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](settings.md#nowhere)\n")
    done = build(docs, tmp_path)
    assert done.returncode == 1
    assert "#nowhere" in done.stderr


@needs_mkdocs
@pytest.mark.parametrize(
    "page",
    [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_has_the_same_lists_code_and_tables_in_the_site_and_on_github(page: Path) -> None:
    """The site's Markdown wants an empty line before a list, and more indentation in one."""
    markdown: Any = importlib.import_module("markdown")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = page.read_text(encoding="utf-8")
    extensions = [name for name in CONFIG["markdown_extensions"] if isinstance(name, str)]
    in_the_site = markdown.markdown(hooks.with_lists(text), extensions=extensions)
    on_github = MarkdownIt("commonmark").enable("table").render(text)
    for tag in ("li", "pre", "td", "h2", "strong"):
        opening = re.compile(rf"<{tag}[ >]")
        assert len(opening.findall(in_the_site)) == len(opening.findall(on_github)), tag


def test_every_page_of_the_menu_is_there_once() -> None:
    pages = pages_of(CONFIG["nav"])
    assert len(pages) == len(set(pages))
    outside = {"contributing.md", "changelog.md", "reporting.md", "deploy_files.md"}
    assert [p for p in pages if p not in outside and not (ROOT / "docs" / p).exists()] == []


def test_every_page_is_in_the_menu() -> None:
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages - set(pages_of(CONFIG["nav"])) == set(), "add it to nav in mkdocs.yml"
