"""Links of Markdown pages, and where they lead: files and headings of the repository."""

import re
from enum import Enum
from functools import cache
from pathlib import Path


class LinkFaults(Enum):
    """What is wrong with a link."""

    NONE = ""
    NO_FILE = "leads to no file"
    NO_ANCHOR = "leads to no heading, or to one that the site and GitHub name differently"


def links_of(text: str) -> list[str]:
    """Return the targets of links and images that stand outside of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = re.sub(r"^ {4,}\S.*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`", "", text)
    in_tags = re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    return [*re.findall(r"\]\(([^)\s]+)\)", text), *in_tags]


def fault_of_link(page: Path, link: str) -> LinkFaults:
    """Return what is wrong with a link of a page; addresses elsewhere are not looked up."""
    if re.match(r"[a-z]+:", link):
        return LinkFaults.NONE
    path, _, anchor = link.partition("#")
    target = (page.parent / path) if path else page
    if not target.exists():
        return LinkFaults.NO_FILE
    if anchor and anchor not in _anchors(target):
        return LinkFaults.NO_ANCHOR
    return LinkFaults.NONE


@cache
def _anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings that GitHub and the site agree on.

    GitHub keeps every space as a hyphen, Python-Markdown joins them.
    """
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.M)
    agreed, seen = set(), set()
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        kept = re.sub(r"[^\w\s-]", "", plain.lower()).strip()
        on_github, on_site = re.sub(r"\s", "-", kept), re.sub(r"[-\s]+", "-", kept)
        # A heading that stands twice has a number, written differently by the two.
        if on_github == on_site and on_github not in seen:
            agreed.add(on_github)
        seen.add(on_github)
    return frozenset(agreed)
