"""`hyimage keys`: API keys, kept as hashes, with what each may do."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import stdout
from cli.options import ConfigOption, read_settings, reported_errors

keys = typer.Typer(
    no_args_is_help=True,
    help="API keys. Without any the server stays on loopback and everybody there may use it. A "
    "running server takes up changes at once.",
)

NO_EXPIRY, NO_QUOTA = "never", 0


def _check_expiry(expires: str | None) -> str | None:
    if expires in (None, NO_EXPIRY):
        return expires
    try:
        datetime.fromisoformat(str(expires))
    except ValueError:
        raise typer.BadParameter(
            f"{expires!r} is not understood; write 2027-01-31, 2027-01-31T18:00+01:00 or never"
        ) from None
    return expires


NameArgument = Annotated[str, typer.Argument(help="Whose key it is.")]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        help="First moment at which it is refused: 2027-01-31, with a time, or never. Without an "
        "offset it is UTC.",
        callback=_check_expiry,
    ),
]
QuotaOption = Annotated[
    int | None, typer.Option(help="Images a day (UTC) that it may generate; 0: no limit.", min=0)
]
WeightOption = Annotated[
    float | None,
    typer.Option(help="Share of the worker beside other keys that wait; 2 is twice that of 1."),
]


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is; appears in logs.")],
    expires: ExpiresOption = None,
    images_per_day: QuotaOption = None,
    weight: WeightOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it once; only its hash is kept.

    Example: hyimage keys add alice --expires 2027-01-31 --images-per-day 500
    """
    with reported_errors():
        from server.tasks.key_file import add_key

        limits = _limits(expires, images_per_day, weight)
        stdout.print(add_key(_file(config), name, **limits))


@keys.command("change")
def change(
    name: NameArgument,
    expires: ExpiresOption = None,
    images_per_day: QuotaOption = None,
    weight: WeightOption = None,
    config: ConfigOption = None,
) -> None:
    """Change the limits that are given; the key stays the same.

    Example: hyimage keys change alice --weight 2
    """
    with reported_errors():
        from server.tasks.key_file import change_key

        change_key(_file(config), name, **_limits(expires, images_per_day, weight))


@keys.command("list")
def list_names(config: ConfigOption = None) -> None:
    """Print the names of all keys, and their limits.

    Example: hyimage keys list
    """
    with reported_errors():
        from server.tasks.key_file import read_key_file

        for record in sorted(read_key_file(_file(config)).values(), key=lambda r: r.name):
            notes = [record.name]
            if record.expires is not None:
                verb = "expired" if record.is_expired else "expires"
                notes.append(f"{verb} {record.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
            if record.images_per_day is not None:
                notes.append(f"{record.images_per_day} images a day")
            if record.weight != 1:
                notes.append(f"weight {record.weight:g}")
            stdout.print(", ".join(notes))


@keys.command("remove")
def remove(name: NameArgument, config: ConfigOption = None) -> None:
    """Delete a key; a running server refuses it from then on.

    Example: hyimage keys remove alice
    """
    with reported_errors():
        from server.tasks.key_file import remove_key

        remove_key(_file(config), name)


def _file(config: Path | None) -> Path:
    return Path(read_settings(config).keys.file)


def _limits(
    expires: str | None, images_per_day: int | None, weight: float | None
) -> dict[str, Any]:
    """Return the limits that were given, as `KeyRecord` has them."""
    limits: dict[str, Any] = {}
    if expires is not None:
        limits["expires"] = None if expires == NO_EXPIRY else datetime.fromisoformat(expires)
    if images_per_day is not None:
        limits["images_per_day"] = None if images_per_day == NO_QUOTA else images_per_day
    if weight is not None:
        limits["weight"] = weight
    return limits
