"""Arguments of the commands that call a running server."""

from typing import Annotated

import typer

from tools.api_client import DEFAULT_URL, KEY_VARIABLE

UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help=f"Address of the server, such as {DEFAULT_URL}.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar=KEY_VARIABLE,
        show_envvar=True,
        show_default=False,
        help="API key, if the server has keys. The variable keeps it out of the list of processes.",
    ),
]
