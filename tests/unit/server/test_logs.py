"""Log lines: text that cannot be forged, JSON that a collector reads, levels."""

import json
import subprocess
import sys
from typing import Any

import pytest

from server.logs import Fields

CODE = """
import logging, sys
from server.logs import log_fields
from server.process import configure_process, request_id
configure_process()
configure_process(sys.argv[1], sys.argv[2])
request_id.set("r-1")
log = logging.getLogger("hyimage.test")
values = {"uuid": "u", "key": "two words", "level": "forged", "s": 0.5}
log_fields(log, logging.INFO, "task", values)
log.debug("a detail of %s", "b")
try:
    {}["missing"]
except KeyError:
    log.exception("it failed")
logging.getLogger("websockets.server").debug("a frame with a key")
"""


def lines_of(level: str, form: str) -> list[str]:
    """Return what a process with these settings writes."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, level, form],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def json_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of("info", "json")]


def test_a_json_line_has_the_fields_of_its_event(json_lines: list[dict[str, Any]]) -> None:
    first = json_lines[0]
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info", "logger": "hyimage.test", "request_id": "r-1", "message": "task",
        "uuid": "u", "key": "two words", "s": 0.5,
    }  # fmt: skip


def test_a_json_line_holds_the_whole_traceback(json_lines: list[dict[str, Any]]) -> None:
    assert [line["message"] for line in json_lines] == ["task", "it failed"]
    assert json_lines[1]["level"] == "error"
    assert json_lines[1]["traceback"].endswith("KeyError: 'missing'")


def test_text_lines_have_level_request_and_fields() -> None:
    first = lines_of("info", "text")[0]
    assert first.partition(" INFO ")[2] == '[r-1] task uuid=u key="two words" level=forged s=0.5'


def test_debug_shows_details_of_ours_and_no_frames_of_libraries() -> None:
    lines = lines_of("debug", "text")
    assert sum("a detail of b" in line for line in lines) == 1
    assert [line for line in lines if "a frame with a key" in line] == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", r'"a\nb"'),
        ('say "so"', r'"say \"so\""'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ("/v1/models", "/v1/models"),
        ("\u2028x", r'"\u2028x"'),
        (3, "3"),
    ],
)
def test_a_value_of_a_client_makes_no_second_line_or_field(value: object, shown: str) -> None:
    assert str(Fields("request", {"path": value})) == f"request path={shown}"
