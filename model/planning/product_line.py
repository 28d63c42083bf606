"""The line of the product that runs at present, for reports of what it costs."""

import sys
from functools import cache
from pathlib import Path
from types import FrameType

_ROOT = Path(__file__).resolve().parents[2]
_SEEN_THROUGH = ("model/planning/", "model/fused.py", "model/mesh.py", "tests/")


def product_line() -> str:
    """Return file and line of the innermost frame that is neither a fused function nor counting."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = _product_file(frame.f_code.co_filename)
        if file is not None:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@cache
def _product_file(filename: str) -> str | None:
    path = Path(filename)
    if not path.is_relative_to(_ROOT) or "site-packages" in path.parts:
        return None
    relative = str(path.relative_to(_ROOT))
    return None if relative.startswith(_SEEN_THROUGH) else relative
