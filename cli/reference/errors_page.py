"""The error reference: codes with their status, in Runware's form and in OpenAI's."""

from collections.abc import Iterable, Mapping

from server.api.openai_errors import error_object
from server.runware.error_catalog import ERRORS, FAMILIES, OPENAI_ERRORS, ErrorKind
from server.runware.errors import TaskError

_INTRODUCTION = """\
# Errors

An answer with errors is `{"data": [...], "errors": [...], "error": {...}}`: one object for each
task that was refused or failed, and `error` repeats the first for clients that read no list. An
object has `code` and `message`, mostly `parameter` and `documentation`, the task's `taskUUID` and
`taskType`, and what would have been allowed (`min`, `max`, `multiplier`, `allowedValues`). The
message has the value that came, the one that is wanted, and what to try.

The **status** is that of an HTTP answer in which nothing succeeded. If one task of several
succeeds it is 200. A poll that finds a failed task has succeeded itself: its status is 200, and
the error has `"status": "error"`. On a WebSocket there are codes alone.

**Send again** says whether the same request can succeed later. Official clients do so by
themselves on 429 and 5xx. With 429 and 503 comes `Retry-After`; `retryAfter` in the error is the
same on a socket.
"""
_OPENAI = """\
## OpenAI's form

`/v1/images/generations`, `/v1/images/edits` and `/v1/models` answer `{"error": {"message", "type",
"param", "code"}}`. `type` is `rate_limit_error` with 429, `server_error` from 500 on, and else
`invalid_request_error`. `code` is the one in the last column above, or one of these:
"""
_OTHER = """\
## Elsewhere

- **WebSocket close codes** are in [WebSocket](websocket.md#staying-open-and-closing).
- **Exit status of `hyimage`**: 0 done, 1 a check that it makes has failed, 2 it cannot do what its
  options say; one line on standard error says why.
- **Metrics**: `hyimage_errors_total` counts codes, `hyimage_tasks_total` how tasks end;
  [Metrics](metrics.md).
"""


def render_errors() -> str:
    """Return the page as Markdown."""
    families = {f"{name}…": kind for name, kind in FAMILIES.items()}
    head = "| code | status | send again | meaning | what to do | in OpenAI's form |"
    return "\n".join(
        [
            _INTRODUCTION,
            "`invalid…` and `missing…` end in the name of a parameter: `invalidWidth`, "
            "`missingPositivePrompt`.",
            "",
            head,
            "| --- | --- | --- | --- | --- | --- |",
            *_rows({**families, **dict(sorted(ERRORS.items()))}),
            "",
            _OPENAI,
            "| code | status | send again | meaning | what to do |",
            "| --- | --- | --- | --- | --- |",
            *(row.rsplit(" | ", 1)[0] + " |" for row in _rows(OPENAI_ERRORS)),
            "",
            _OTHER,
        ]
    )


def _rows(kinds: Mapping[str, ErrorKind]) -> Iterable[str]:
    for code, kind in kinds.items():
        again = "yes" if kind.is_transient else "no"
        openai = error_object(TaskError(code, ""), kind.status)["code"]
        yield (
            f"| `{code}` | {kind.status} | {again} | {kind.meaning} | {kind.advice} | `{openai}` |"
        )
