"""The size budget that `make check` applies."""

from pathlib import Path

import pytest

from tests.size_budget import find_excesses


@pytest.mark.parametrize(
    ("name", "text", "excesses"),
    [
        ("server/a.py", "x = 1\n" * 300, []),
        ("server/a.py", "x = 1\n" * 301, ["server/a.py: 301 lines; split it, 300 is the limit"]),
        ("tests/unit/a.py", "x = 1\n" * 400, []),
        ("tests/a.py", "x = 1\n" * 401, ["tests/a.py: 401 lines; split it, 400 is the limit"]),
        ("model/a.py", "class A:\n  def f():\n" + "    x = 1\n" * 49, []),
        (
            "model/a.py",
            "class A:\n  async def f():\n" + "    x = 1\n" * 50,
            ["model/a.py:2: f has 51 lines; split it, 50 is the limit"],
        ),
        ("tests/a.py", "def f():\n" + "    x = 1\n" * 60, []),
    ],
)
def test_files_and_functions_over_their_budget_are_named(
    tmp_path: Path, name: str, text: str, excesses: list[str]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert list(find_excesses(tmp_path)) == excesses
