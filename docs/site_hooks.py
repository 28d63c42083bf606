"""Hooks of the site: pages from the root of the repository, and links between them and docs/."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages outside of docs/ and their names in the site.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "deploy/README.md": "deploy_files.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside of docs/."""
    for path, name in OUTSIDE.items():
        if (ROOT / path).exists():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links lead to pages of the site, however it lies in the repository."""
    uri = page.file.src_uri
    outside = {name: path for path, name in OUTSIDE.items()}.get(uri)
    folder = (ROOT / (outside or f"docs/{uri}")).parent
    above = "../" * uri.count("/")

    def in_site(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        name = OUTSIDE.get(str(target.relative_to(ROOT)) if target.is_relative_to(ROOT) else "")
        if name is not None:
            return f"]({above}{name}"
        if outside is not None and target.is_relative_to(ROOT / "docs"):
            return f"]({target.relative_to(ROOT / 'docs')}"
        return match[0]

    return re.sub(r"\]\((?![a-z]+:|#)([^)\s#]+)", in_site, with_lists(markdown))


def with_lists(markdown: str) -> str:
    """Return a page whose lists begin after an empty line, without which they are no lists here.

    GitHub does not need the line.
    """
    return re.sub(r"^(?!- |\d+\. |[ \t\n|>#])(.+)\n(?=- |\d+\. )", r"\1\n\n", markdown, flags=re.M)
