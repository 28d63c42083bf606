"""The lock of a data folder: who excludes whom, and what a refusal names."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.settings import SettingsError, TaskSettings
from server.tasks.data_lock import locked_data

HOLDER = """
import sys
from server.settings import TaskSettings
from server.tasks.data_lock import locked_data
with locked_data(TaskSettings(database_url=sys.argv[1], is_shared=sys.argv[2] == "shared")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/tasks.db"


@pytest.fixture(params=["alone", "shared"])
def holder(url: str, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, url, request.param]
    root = Path(__file__).parents[4]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_server_alone_is_refused_with_the_process_id_of_the_other(
    holder: "subprocess.Popen[str]", url: str
) -> None:
    with (
        pytest.raises(SettingsError, match=rf"process {holder.pid}\).*tasks\.is_shared = true"),
        locked_data(TaskSettings(database_url=url)),
    ):
        pytest.fail("both servers have the lock")


@pytest.mark.parametrize("holder", ["shared"], indirect=True)
def test_servers_that_share_hold_it_together(
    holder: "subprocess.Popen[str]", url: str, tmp_path: Path
) -> None:
    with locked_data(TaskSettings(database_url=url, is_shared=True)):
        assert (tmp_path / "data" / "tasks.db.lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_killed_server_is_free(holder: "subprocess.Popen[str]", url: str) -> None:
    holder.kill()
    holder.wait()
    with locked_data(TaskSettings(database_url=url)):
        pass


@pytest.mark.parametrize(
    "other", ["postgresql+psycopg://db/hyimage", "sqlite://", "not a url", "sqlite:///:memory:"]
)
def test_what_is_no_sqlite_file_has_no_lock(other: str) -> None:
    with locked_data(TaskSettings(database_url=other)):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    settings = TaskSettings(database_url=f"sqlite:///{tmp_path}/data/tasks.db")
    with pytest.raises(SettingsError, match=r"data/tasks\.db\.lock"), locked_data(settings):
        pass
