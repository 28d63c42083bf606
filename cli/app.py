"""`hyimage`, the command: its subcommands put together. Every one has a file of its own."""

from importlib.metadata import version
from typing import Annotated

import typer

from cli.bench.app import bench
from cli.calibrate import calibrate
from cli.cancel import cancel
from cli.config import config
from cli.console import stdout
from cli.doctor import doctor
from cli.download import download
from cli.first_contact import first_contact
from cli.generate import generate
from cli.keys import keys
from cli.ledger import ledger
from cli.plan import plan
from cli.prove import prove
from cli.quantize import quantize
from cli.record import record
from cli.serve import serve
from cli.status import status
from cli.train import train_tiny_checkpoint
from cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="HunyuanImage-3.0 on your own machines, behind Runware's imageInference API.",
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        stdout.print(f"hyimage {version('hunyuan-image-server')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """HunyuanImage-3.0 on your own machines, behind Runware's imageInference API."""


for _command in (
    serve,
    status,
    cancel,
    generate,
    download,
    doctor,
    plan,
    quantize,
    calibrate,
    verify,
    record,
    ledger,
    prove,
):
    app.command()(_command)
app.command("first-contact")(first_contact)
app.command("train-tiny")(train_tiny_checkpoint)
app.add_typer(keys, name="keys")
app.add_typer(config, name="config")
app.add_typer(bench, name="bench")

if __name__ == "__main__":
    app()
