"""Import guard: no other package named `model`, `cache`, ... shadows ours."""

import importlib.util
from pathlib import Path

PACKAGES = ("cli", "tools", "server", "training", "pipeline", "model", "schedulers", "cache")


class ForeignPackageError(RuntimeError):
    """A package of this distribution resolves to files from elsewhere."""


def check_imports() -> None:
    """Check that all packages of this distribution lie side by side.

    Raises:
        ForeignPackageError: one does not; the message names it.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != home:
            raise ForeignPackageError(
                f"the package {name!r} comes from {found}, not from {home}; "
                "start with `hyimage` in its own virtual environment, without PYTHONPATH"
            )
