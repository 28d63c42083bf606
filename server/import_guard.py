"""Guard against another package named `model`, `cache`, ... winning the import."""

import importlib.util
from pathlib import Path

PACKAGES = ("cli", "tools", "server", "training", "pipeline", "model", "schedulers", "cache")


class ForeignPackageError(RuntimeError):
    """A package of ours resolves to somebody else's files."""


def check_imports() -> None:
    """Stop unless all our packages lie side by side.

    Raises:
        ForeignPackageError: naming the intruder.
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
