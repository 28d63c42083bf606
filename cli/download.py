"""`hyimage download`: the weights of a release, after its licence, and the next command."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cli.console import stderr, stdout
from cli.options import reported_errors

if TYPE_CHECKING:
    from tools.checkpoint_download import Listing

ReleaseName = Literal["base", "instruct", "distil"]

LICENCE = """\
The weights of {repository} are Tencent's, under the licence in {file}.
It does not apply in the European Union, the United Kingdom and South Korea: whoever is there has
no licence for them. Elsewhere its terms and its acceptable use policy bind you, also for what you
offer over a network. This is no summary to rely on: read the licence before you answer."""


def download(
    release: Annotated[
        ReleaseName,
        typer.Argument(
            help="base: text to image; instruct: also texts and input images; distil: "
            "instruct in 8 steps."
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder; by default checkpoints/ and the repository's name."),
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence without a question.")
    ] = False,
    revision: Annotated[
        str, typer.Option("--revision", help="Branch, tag or commit of the repository.")
    ] = "main",
    repository: Annotated[
        str | None,
        typer.Option("--repository", help="OWNER/NAME of a copy of the release on the hub."),
    ] = None,
    num_workers: Annotated[
        int, typer.Option("--num-workers", help="Files transferred at once.", min=1, max=16)
    ] = 4,
) -> None:
    """Download a released checkpoint, 170 GB: resumes, and compares every file with its checksum.

    HF_TOKEN is sent to the hub, HF_ENDPOINT names another hub. The same command goes on where it
    was cut off; on a whole checkpoint it only compares.

    Example: hyimage download instruct --to models/instruct
    """  # fmt: skip
    with reported_errors():
        from tools import checkpoint_download as library

        name = repository or library.REPOSITORIES[release]
        folder = to or Path("checkpoints") / name.rpartition("/")[2]
        listing = library.list_files(name, revision)
        missing = library.count_missing_bytes(listing, folder)
        stdout.print(
            f"{name} at {listing.revision[:12]}: {len(listing.files)} files, "
            f"{listing.size_bytes / 1e9:.1f} GB, of which {missing / 1e9:.1f} GB are missing"
        )
        library.check_space(missing, folder)
        _confirm_licence(listing, folder, accept_license)
        with _progress(listing.size_bytes) as count:
            library.download_files(listing, folder, count, num_workers)
    stdout.print(f"{folder} is whole. What runs it here, and how to start it:")
    stdout.print(f"  hyimage doctor {folder}")
    stdout.print(f"  hyimage plan --checkpoint {folder} --gpus 4x80GB")
    stdout.print(f"  hyimage serve --config configs/hunyuan_image_3.toml --checkpoint {folder}")


def _confirm_licence(listing: Listing, folder: Path, is_accepted: bool) -> None:
    """Show the licence, and end with exit status 1 unless it is accepted."""
    from dataclasses import replace

    from tools import checkpoint_download as library
    from tools.hub_faults import DownloadError

    texts = listing.matching(library.LICENCES)
    library.download_files(replace(listing, files=texts), folder, lambda _: None)
    file = str(folder / texts[0].name) if texts else "the repository"
    stdout.print(LICENCE.format(repository=listing.repository, file=file))
    if is_accepted:
        return
    if not sys.stdin.isatty():
        raise DownloadError(
            f"the licence in {file} needs an answer, and there is no terminal; read it, and pass "
            "--accept-license if you accept it"
        )
    typer.confirm("Do you accept it, and do you use the weights where it applies?", abort=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts bytes, also from several threads, on a bar of all of them."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    lock = threading.Lock()
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task("downloading", total=total)

        def count(num_bytes: int) -> None:
            with lock:
                progress.advance(task, num_bytes)

        yield count
