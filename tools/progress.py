"""Progress of a measurement, reported to whoever shows it."""

from collections.abc import Callable

# (stage, units done, units in all), for example ("recording", 3, 54). Called often; must be cheap.
Report = Callable[[str, int, int], None]


def ignore(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def megabytes(report: Report, stage: str) -> Callable[[int, int], None]:
    """Return a callback that reports bytes done and bytes in all as one stage, in MiB."""
    return lambda done, total: report(f"{stage}, MiB", done >> 20, total >> 20)
