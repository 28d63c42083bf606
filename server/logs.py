"""Log lines of a process: as text or as JSON, with the id of the request that each is about."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["text", "json"]

TEXT_FORMAT = "%(asctime)s %(levelname)s [%(request_id)s] %(message)s"
# Chattier than their worth: httpx writes whole URLs, and alembic what server/tasks/database.py says
# in one line. At debug level the others write bodies and keys.
QUIET = ("httpx", "httpcore", "alembic", "websockets", "uvicorn", "botocore", "s3fs", "fsspec")

_PLAIN = re.compile(r"[^\s\"=\\]+")


class Fields:
    """An event with named values: `name a=1 b="two words"` as text, members of the line in JSON."""

    def __init__(self, event: str, values: Mapping[str, object]) -> None:
        self.event = event
        self.values = values

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{k}={_as_text(v)}" for k, v in self.values.items())])


def log_fields(log: logging.Logger, level: int, event: str, values: Mapping[str, object]) -> None:
    """Write one line about an event."""
    log.log(level, Fields(event, values))


class JsonFormatter(logging.Formatter):
    """Each record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = record.msg if isinstance(record.msg, Fields) else None
        line: dict[str, Any] = {
            "time": f"{_utc(record.created)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage() if fields is None else fields.event,
        }
        if fields is not None:
            line = {**fields.values, **line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class StderrHandler(logging.StreamHandler[Any]):
    """Writes to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(
    add_context: Callable[[logging.LogRecord], bool], level: Level = "info", form: Form = "text"
) -> None:
    """Write log lines to standard error; a later call replaces what an earlier one set.

    In a program that has handlers of its own they stay, and only get the request's id.
    """
    root = logging.getLogger()
    others = [handler for handler in root.handlers if not isinstance(handler, StderrHandler)]
    for handler in others:
        handler.addFilter(add_context)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if others:
        return
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT_FORMAT))
    handler.addFilter(add_context)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _as_text(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
