"""The error that refuses or ends a task, with the code that the API's clients read."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TaskError(Exception):
    """A refusal or failure with the API's code; `details` are further fields of its error object.

    `parameter` names the parameter at fault, or several for an error across fields.
    """

    code: str
    message: str
    parameter: str | list[str] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class CommandError(ValueError):
    """A command cannot do what its options ask; the message says what would work."""

    code = "commandFailed"
