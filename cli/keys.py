"""`hyimage keys`: API keys, kept as hashes."""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import stdout
from cli.options import ConfigOption, read_settings, reported_errors

keys = typer.Typer(
    no_args_is_help=True,
    help="API keys. Without any the server stays on loopback and everybody there may use it.",
)


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is; appears in logs.")],
    config: ConfigOption = None,
) -> None:
    """Make a key and print it once; only its hash is kept.

    Example: hyimage keys add alice
    """
    from server.api.auth import add_key

    with reported_errors():
        stdout.print(add_key(Path(read_settings(config).keys.file), name))


@keys.command("list")
def list_names(config: ConfigOption = None) -> None:
    """Print the names of all keys.

    Example: hyimage keys list
    """
    from server.api.auth import read_key_file

    with reported_errors():
        for name in sorted(read_key_file(Path(read_settings(config).keys.file)).values()):
            stdout.print(name)


@keys.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Whose key it is.")], config: ConfigOption = None
) -> None:
    """Delete a key; a running server accepts it until it is restarted.

    Example: hyimage keys remove alice
    """
    from server.api.auth import remove_key

    with reported_errors():
        remove_key(Path(read_settings(config).keys.file), name)
