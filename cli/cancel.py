"""`hyimage cancel`: stop one task of a running server."""

from typing import Annotated

import typer

from cli.console import stdout
from cli.options import reported_errors
from cli.server_options import KeyOption, UrlArgument
from tools.api_client import DEFAULT_URL, cancel_task, open_client

_MEANINGS = {
    "cancelled": "cancelled",
    "success": "not cancelled: it had finished already",
    "failed": "not cancelled: it had failed already",
    "cancelling": "not cancelled yet: the server that generates it stops it soon",
}


def cancel(
    task_uuid: Annotated[str, typer.Argument(metavar="TASK_UUID", help="UUID of the task.")],
    url: UrlArgument = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Stop a task after its present step. Exits with 0 if it is cancelled, 1 if not, 2 on errors.

    Cancelling again changes nothing. `hyimage status` lists the tasks of a key.

    Example: hyimage cancel c3f77111-0f44-4286-823a-e5839cd877cf http://127.0.0.1:8000
    """
    with reported_errors():
        with open_client(url, key) as client:
            status = cancel_task(client, task_uuid)
        stdout.print(f"{task_uuid}  {_MEANINGS.get(status, status)}")
    if status != "cancelled":
        raise typer.Exit(1)
