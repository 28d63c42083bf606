"""Keys of a running server: reloaded when their file changes, kept when it breaks, expired."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.runware.errors import TaskError
from server.settings import SettingsError
from server.tasks.key_file import (
    KeyRecord,
    add_key,
    change_key,
    hash_key,
    read_key_file,
    remove_key,
)
from server.tasks.keys import Keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def test_a_key_that_is_added_or_removed_counts_at_once(file: Path) -> None:
    first = add_key(file, "first")
    keys = Keys.load(file)
    second = add_key(file, "second")
    assert keys.check(second) == "second"
    remove_key(file, "first")
    with pytest.raises(TaskError, match="invalidApiKey"):
        keys.check(first)
    with pytest.raises(TaskError, match="not valid any more"):
        keys.check_owner("first")
    keys.check_owner("second")


def test_without_its_last_key_a_server_is_locked_and_not_open(file: Path) -> None:
    key = add_key(file, "only")
    keys = Keys.load(file)
    remove_key(file, "only")
    for given, code in ((key, "invalidApiKey"), (None, "missingApiKey")):
        with pytest.raises(TaskError) as caught:
            keys.check(given)
        assert caught.value.code == code


def test_the_first_key_closes_a_server_that_was_open(file: Path) -> None:
    keys = Keys.load(file)
    assert keys.check(None) == "anybody"
    key = add_key(file, "first")
    assert keys.check(key) == "first"
    with pytest.raises(TaskError, match="missingApiKey"):
        keys.check(None)
    with pytest.raises(TaskError, match="invalidApiKey"):
        keys.check_owner("anybody")


@pytest.mark.parametrize("broken", ["{", "[]", '{"keys": {"h": {"nme": "x"}}}', None])
def test_a_broken_file_keeps_the_old_keys_and_logs_one_error(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_key(file, "first")
    keys = Keys.load(file)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert keys.check(key) == "first"
    (line,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert str(file) in line.getMessage()
    assert "the keys stay as they were" in line.getMessage()
    if broken is not None:
        file.unlink()
    second = add_key(file, "second")  # mended: the file is read again
    assert keys.check(second) == "second"


def test_an_expired_key_is_refused_with_its_time(file: Path) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    key = add_key(file, "old", expires=past)
    with pytest.raises(TaskError, match=f"invalidApiKey: .*expired at {past:%Y-%m-%d %H:%M}"):
        Keys.load(file).check(key)
    change_key(file, "old", expires=datetime.now(UTC) + timedelta(hours=1))
    keys = Keys.load(file)
    assert keys.check(key) == "old"
    change_key(file, "old", expires=past)
    with pytest.raises(TaskError, match="expired"):
        keys.check_owner("old")


def test_a_time_without_a_zone_is_meant_in_utc(file: Path) -> None:
    add_key(file, "one", expires=datetime(2027, 1, 31, 18, 0))
    (record,) = read_key_file(file).values()
    assert record.expires == datetime(2027, 1, 31, 18, 0, tzinfo=UTC)


def test_a_key_has_the_limits_it_was_given_and_another_none(file: Path) -> None:
    add_key(file, "one", images_per_day=5, weight=2.5)
    keys = Keys.load(file)
    assert keys.record("one") == KeyRecord(name="one", images_per_day=5, weight=2.5)
    assert keys.record("nobody") == KeyRecord(name="nobody")
    assert keys.record("nobody").weight == 1
    change_key(file, "one", images_per_day=None)
    keys.check_owner("one")
    assert keys.record("one") == KeyRecord(name="one", weight=2.5)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"weight": 0}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"images_per_day": 0}, "images_per_day"),
        ({"expires": "soon"}, "expires"),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name_and_nothing_is_written(
    file: Path, limits: dict[str, object], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        add_key(file, "one", **limits)
    assert not file.exists()


def test_a_file_of_an_older_server_is_read(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({"keys": {hash_key("hy-old"): "alice"}}))
    assert Keys.load(file).check("hy-old") == "alice"
    add_key(file, "bob")
    assert {record.name for record in read_key_file(file).values()} == {"alice", "bob"}
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]
