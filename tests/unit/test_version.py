"""The version stands in pyproject.toml; CHANGELOG and SECURITY are about the same one."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_the_newest_part_of_the_changelog_is_about_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.M)
    assert headings[0] == VERSION
    assert len(set(headings)) == len(headings)


def test_this_version_gets_fixes() -> None:
    rows = re.findall(r"^\| (\S+) \| yes", (ROOT / "SECURITY.md").read_text("utf-8"), flags=re.M)
    assert rows == [".".join(VERSION.split(".")[:2])]


def test_no_code_and_no_manifest_repeats_the_version() -> None:
    folders = ("cli", "tools", "server", "training", "pipeline", "model", "schedulers", "cache")
    repeated = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if re.search(rf"[\"']{re.escape(VERSION)}[\"']", path.read_text("utf-8"))
    ]
    assert repeated == []
