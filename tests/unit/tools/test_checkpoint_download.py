"""`hyimage download` against a stand-in for the hub: whole, cut off, wrong, refused, no room."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from tests.unit.tools.hub import BLOCK_BYTES, COMMIT, FILES, LARGE, SECOND, Hub
from tools.checkpoint_download import (
    PARTS,
    Listing,
    RemoteFile,
    check_space,
    count_missing_bytes,
    locked,
)
from tools.hub_faults import DownloadError

ROOT = Path(__file__).parents[3]
WANTED = {
    "LICENSE", "config.json", "model.safetensors.index.json", "model-0001-of-0002.safetensors",
    SECOND, "tokenizer.json",
}  # fmt: skip
# The tests' own process may not reach any hub (HF_HUB_OFFLINE, read once), so one child does.
CHILD = """
import json, sys
from typer.testing import CliRunner
from cli.app import app
for line in sys.stdin:
    done = CliRunner().invoke(app, json.loads(line))
    print(json.dumps([done.exit_code, " ".join(done.output.split()), repr(done.exception)]))
    sys.stdout.flush()
"""
Download = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def hub() -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def child(hub: type[Hub]) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1,localhost", "HF_TOKEN": "hf_secret",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def download(hub: type[Hub], child: subprocess.Popen[str], tmp_path: Path) -> Download:
    """Run the command on a repository of the stand-in; returns exit status and output."""
    hub.gets, hub.is_cutting = [], True

    def run(name: str, *options: str, accepted: bool = True) -> tuple[int, str]:
        accept = ["--accept-license"] if accepted else []
        arguments = ["download", "base", "--to", str(tmp_path / "to"), *accept, *options]
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps([*arguments, "--repository", f"own/{name}"]) + "\n")
        child.stdin.flush()
        status, output, error = json.loads(child.stdout.readline())
        assert "SystemExit" in error or error == "None", error
        return status, output

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_files_that_serving_needs_come_whole(download: Download, tmp_path: Path) -> None:
    status, output = download("whole")
    assert status == 0, output
    assert contents(tmp_path / "to") == {name: FILES[name] for name in WANTED}
    assert not (tmp_path / "to" / PARTS).exists()
    assert f"hyimage plan --checkpoint {tmp_path}" in output


def test_the_token_goes_to_the_hub_and_to_no_other_host(download: Download, hub: type[Hub]) -> None:
    download("whole")
    assert hub.tokens == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


def test_two_downloads_into_one_folder_are_refused(download: Download, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with locked(tmp_path / "to"):
        status, output = download("whole")
    assert status == 2
    assert "another download" in output
    assert contents(tmp_path / "to") == {}


def test_the_licence_is_shown_and_its_limits_are_named(download: Download, tmp_path: Path) -> None:
    _, output = download("whole")
    assert f"licence in {tmp_path}/to/LICENSE" in output
    for place in ("European Union", "United Kingdom", "South Korea"):
        assert place in output


def test_nothing_but_the_licence_comes_before_it_is_accepted(
    download: Download, tmp_path: Path
) -> None:
    status, output = download("whole", accepted=False)
    assert status == 2
    assert "--accept-license" in output
    assert contents(tmp_path / "to") == {"LICENSE": FILES["LICENSE"]}


def test_a_second_download_compares_and_transfers_nothing(
    download: Download, hub: type[Hub]
) -> None:
    download("whole")
    hub.gets = []
    status, output = download("whole")
    assert status == 0
    assert "of which 0.0 GB are missing" in output
    assert hub.gets == []


@pytest.mark.parametrize("name", ["cut", "rangeless"])
def test_a_download_that_was_cut_off_goes_on(
    download: Download, hub: type[Hub], tmp_path: Path, name: str
) -> None:
    status, output = download(name)
    assert status == 2
    assert "run the same command again" in output
    (part,) = (tmp_path / "to" / PARTS).iterdir()
    assert part.read_bytes() == LARGE[SECOND][:BLOCK_BYTES]
    hub.gets, hub.is_cutting = [], False
    status, output = download(name)
    assert status == 0, output
    assert hub.gets == [(SECOND, f"bytes={BLOCK_BYTES}-")]
    assert contents(tmp_path / "to") == {file: LARGE[file] for file in WANTED}


def test_a_file_with_another_checksum_is_named_and_not_kept(
    download: Download, tmp_path: Path
) -> None:
    status, output = download("wrong")
    assert status == 2
    assert f"{SECOND} came with the checksum" in output
    assert SECOND not in contents(tmp_path / "to")
    assert not any((tmp_path / "to" / PARTS).glob(f"{SECOND}*"))
    assert download("whole")[0] == 0


def test_a_file_of_the_users_own_is_not_overwritten(download: Download, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    own = tmp_path / "to" / "config.json"
    own.write_text('{"a": 2}')
    status, output = download("whole")
    assert status == 2
    assert f"{own} is not the file of own/whole" in output
    assert own.read_text() == '{"a": 2}'


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("gated", (), "set it in HF_TOKEN"),
        ("private", (), "set it in HF_TOKEN"),
        ("nothing", (), "the hub has no own/nothing for you"),
        ("broken", (), "the hub answered 500"),
        ("away", (), "HTTPS_PROXY"),
        ("other", (), "it is no checkpoint of this model"),
        ("whole", ("--revision", "v9"), "has no revision v9"),
    ],
)
def test_a_hub_that_gives_nothing_is_one_line_that_says_what_to_do(
    download: Download, tmp_path: Path, name: str, options: tuple[str, ...], complaint: str
) -> None:
    status, output = download(name, *options)
    assert status == 2
    assert complaint in output
    assert "Traceback" not in output
    assert not (tmp_path / "to").exists()


def test_an_unknown_release_is_refused_with_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["download", "pro"])
    assert result.exit_code == 2
    assert "'base', 'instruct', 'distil'" in " ".join(result.output.replace("│", "").split())


def test_an_offline_process_says_which_variable_makes_it_so() -> None:
    result = CliRunner().invoke(app, ["download", "base"])
    assert result.exit_code == 2
    assert "HF_HUB_OFFLINE=0" in result.output


FILE = RemoteFile(name="model.safetensors", size_bytes=3 * 10**9, digest="ab" * 32, is_lfs=True)
LISTING = Listing(repository="own/whole", revision=COMMIT, files=(FILE,))


def test_what_was_begun_is_not_missing_again(tmp_path: Path) -> None:
    assert count_missing_bytes(LISTING, tmp_path) == 3 * 10**9
    (tmp_path / PARTS).mkdir()
    (tmp_path / PARTS / f"{FILE.name}.{FILE.digest[:12]}").write_bytes(bytes(1000))
    assert count_missing_bytes(LISTING, tmp_path) == 3 * 10**9 - 1000


def test_a_disk_that_is_too_small_is_refused_before_anything_comes(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"3\.0 GB are missing and 2\.0 GB are free.*--to"):
        check_space(3 * 10**9, tmp_path / "to", free_bytes=2 * 10**9)
    check_space(3 * 10**9, tmp_path, free_bytes=5 * 10**9)
    check_space(0, tmp_path, free_bytes=0)
    check_space(1, tmp_path / "not" / "there")
