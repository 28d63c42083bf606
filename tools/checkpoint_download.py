"""Download of a released checkpoint: the files that serving needs, resumed, each against its hash.

`huggingface_hub` lists the files and transfers their bytes. Its own download deletes what a broken
transfer has brought (version 2.4), up to 5 GB a file here; this one keeps it in `.parts`.
"""

import fcntl
import fnmatch
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars

from tools.hub_faults import DownloadError, hub_faults

# Source: the links to the weights in the README of Tencent's HunyuanImage-3.0 repository, 2026-11.
REPOSITORIES = {
    "base": "tencent/HunyuanImage-3.0",
    "instruct": "tencent/HunyuanImage-3.0-Instruct",
    "distil": "tencent/HunyuanImage-3.0-Instruct-Distil",
}
# What is loaded, and the terms; not the repository's code and pictures.
NEEDED = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*.json", "special_tokens_map.json", "LICENSE*", "License*", "NOTICE*", "Notice*",
)  # fmt: skip
LICENCES = ("LICENSE*", "License*")
SPARE_BYTES = 2**30  # of the disk stay free: logs and images go on beside it
PARTS = ".parts"
_BLOCK_BYTES = 8 * 2**20

Count = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file of the hub. Its digest is SHA-256 where LFS keeps it, and git's SHA-1 elsewhere."""

    name: str
    size_bytes: int
    digest: str
    is_lfs: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The needed files of one revision of a repository; `endpoint` is the hub, None its default."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]
    endpoint: str | None = None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def matching(self, patterns: Sequence[str]) -> tuple[RemoteFile, ...]:
        """Return the files whose name fits one of the patterns."""
        return tuple(file for file in self.files if _fits(file.name, patterns))


def list_files(repository: str, revision: str = "main", endpoint: str | None = None) -> Listing:
    """Return what serving needs of a repository, with sizes and digests.

    Raises:
        DownloadError: the hub cannot be reached, or does not give it.
    """
    with hub_faults(repository, revision):
        info = HfApi(endpoint=endpoint).model_info(
            repository, revision=revision, files_metadata=True
        )
    files = [
        RemoteFile(
            name=sibling.rfilename,
            size_bytes=sibling.size,
            digest=sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or "",
            is_lfs=sibling.lfs is not None,
        )
        for sibling in info.siblings or ()
        if _fits(sibling.rfilename, NEEDED) and sibling.size is not None
    ]
    names = [file.name for file in files]
    if "config.json" not in names or not fnmatch.filter(names, "*.safetensors"):
        raise DownloadError(
            f"{repository} has no config.json, or no *.safetensors, at revision {revision}: it is "
            f"no checkpoint of this model; the known ones are {', '.join(REPOSITORIES.values())}"
        )
    ordered = sorted(files, key=lambda file: (file.is_lfs, file.name))
    return Listing(
        repository=repository,
        revision=info.sha or revision,
        files=tuple(ordered),
        endpoint=endpoint,
    )


def count_missing_bytes(listing: Listing, folder: Path) -> int:
    """Return how much of a listing is yet to come into a folder."""
    missing = 0
    for file in listing.files:
        target, part = folder / file.name, _part_of(folder, file)
        if not target.is_file():
            missing += file.size_bytes - (part.stat().st_size if part.is_file() else 0)
    return max(0, missing)


def check_space(num_bytes: int, folder: Path, free_bytes: int | None = None) -> None:
    """Refuse to begin what does not fit on the disk of a folder; `free_bytes` is what it has.

    Raises:
        DownloadError: it has less than that and a GiB to spare.
    """
    if free_bytes is None:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free_bytes = shutil.disk_usage(existing).free
    if num_bytes and num_bytes + SPARE_BYTES > free_bytes:
        raise DownloadError(
            f"{num_bytes / 1e9:.1f} GB are missing and {free_bytes / 1e9:.1f} GB are free where "
            f"{folder} is; free {(num_bytes + SPARE_BYTES - free_bytes) / 1e9:.1f} GB there, or "
            "name a folder on a larger disk with --to"
        )


def download_files(listing: Listing, folder: Path, count: Count, num_workers: int = 4) -> None:
    """Bring the files of a listing into a folder, several at once; what is there stays.

    `count` gets the bytes that are done, from several threads: transferred, or found to be there.

    Raises:
        DownloadError: the hub or the disk fails, or a file is not the one that was released.
            What came so far is kept for the next call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    with locked(folder):
        _bring_all(listing, folder, count, num_workers)
    parts = folder / PARTS
    if parts.is_dir() and not any(parts.iterdir()):
        parts.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one download; the kernel frees it with the process.

    Raises:
        DownloadError: another download holds it: two would write into the same files.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DownloadError(
            f"another download writes into {folder}; wait until it ends, or stop it"
        ) from None
    finally:
        os.close(descriptor)


def _bring_all(listing: Listing, folder: Path, count: Count, num_workers: int) -> None:
    stopping = threading.Event()

    def bring(file: RemoteFile) -> None:
        if not stopping.is_set():
            _bring(listing, file, folder, _stopped_by(stopping, count))

    with ThreadPoolExecutor(num_workers) as pool:
        tasks = [pool.submit(bring, file) for file in listing.files]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:  # a fault, or Ctrl-C: the others stop at their next block
            stopping.set()
    for error in filter(None, (task.exception() for task in tasks)):
        if not isinstance(error, _StoppedError):
            raise error


def digest_of(path: Path, file: RemoteFile, count: Count) -> str:
    """Return the digest of what a path holds, of the kind that the hub has for the file."""
    digest = hashlib.sha256() if file.is_lfs else hashlib.sha1(usedforsecurity=False)
    if not file.is_lfs:
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            count(len(block))
    return digest.hexdigest()


class _StoppedError(Exception):
    """Another file has failed, or the user has stopped."""


def _stopped_by(stopping: threading.Event, count: Count) -> Count:
    def counted(num_bytes: int) -> None:
        if stopping.is_set():
            raise _StoppedError
        count(num_bytes)

    return counted


class _CountedFile:
    """The end of a file, as the transfer writes it."""

    def __init__(self, stream: BinaryIO, count: Count) -> None:
        self._stream, self._count = stream, count

    def write(self, block: bytes) -> int:
        num_written = self._stream.write(block)
        self._count(num_written)
        return num_written

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int) -> int:
        return self._stream.seek(offset)

    def truncate(self) -> int:
        """Drop what a server without byte ranges is about to send again."""
        before = os.fstat(self._stream.fileno()).st_size
        after = self._stream.truncate()
        self._count(after - before)
        return after


def _bring(listing: Listing, file: RemoteFile, folder: Path, count: Count) -> None:
    target, part = folder / file.name, _part_of(folder, file)
    if target.is_file():
        if (
            target.stat().st_size != file.size_bytes
            or digest_of(target, file, count) != file.digest
        ):
            raise DownloadError(
                f"{target} is not the file of {listing.repository} at {listing.revision[:12]}; "
                "delete it to download that one, or name another folder with --to"
            )
        return
    part.parent.mkdir(exist_ok=True)
    if part.is_file():
        if part.stat().st_size > file.size_bytes:
            part.unlink()
        else:
            count(part.stat().st_size)
    _transfer(listing, file, part, count)
    found = digest_of(part, file, lambda _: None)
    if found != file.digest:
        part.unlink()
        raise DownloadError(
            f"{file.name} came with the checksum {found[:16]}... instead of {file.digest[:16]}...; "
            "it is deleted. Run the same command again; if it happens again, something between "
            "this machine and the hub changes files"
        )
    part.replace(target)


def _transfer(listing: Listing, file: RemoteFile, part: Path, count: Count) -> None:
    url = hf_hub_url(
        listing.repository, file.name, revision=listing.revision, endpoint=listing.endpoint
    )
    with hub_faults(listing.repository, listing.revision), part.open("ab") as stream:
        http_get(
            url,
            cast(BinaryIO, _CountedFile(stream, count)),
            resume_size=part.stat().st_size,
            headers=build_hf_headers(),
            expected_size=file.size_bytes,
        )


def _part_of(folder: Path, file: RemoteFile) -> Path:
    """Return where a file is until it is whole; another revision of it has another place."""
    return folder / PARTS / f"{file.name}.{file.digest[:12]}"


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, one) for one in patterns)
