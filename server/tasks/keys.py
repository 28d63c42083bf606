"""API keys of a running server: compared in constant time, read again when their file changes."""

import hmac
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from server.runware.errors import TaskError
from server.settings import SettingsError
from server.tasks.admission import ANYBODY
from server.tasks.key_file import KeyRecord, hash_key, read_key_file

log = logging.getLogger(__name__)

ENVIRONMENT = "HYIMAGE_API_KEYS"

Signature = tuple[int, int, int] | None  # of a file that may have changed; None if it is not there


class Keys:
    """The keys that may be used: hash -> record. Without any, everybody is `ANYBODY`.

    Once there was a key, one is needed for ever: removing the last one locks the server, and does
    not open it.
    """

    def __init__(self, records: Mapping[str, KeyRecord], file: Path | None = None) -> None:
        """Hold these keys, and from now on those of the file."""
        self._records = dict(records)
        self._fixed: dict[str, KeyRecord] = {}  # not of the file
        self._file = file
        self._signature = _signature(file)
        self._is_needed = bool(records)

    @classmethod
    def load(cls, file: Path) -> "Keys":
        """Read the key file, if there is one, and the comma-separated environment variable.

        Raises:
            SettingsError: the file is not what `hyimage keys` writes.
        """
        listed = filter(None, map(str.strip, os.environ.get(ENVIRONMENT, "").split(",")))
        fixed = {
            hash_key(key): KeyRecord(name=f"environment-{index}")
            for index, key in enumerate(listed)
        }
        keys = cls(fixed, file)
        keys._fixed = fixed
        keys._records = read_key_file(file) | fixed
        keys._is_needed = bool(keys._records)
        return keys

    def __bool__(self) -> bool:
        return self._is_needed

    def check(self, key: str | None) -> str:
        """Return the name of the key's owner.

        Raises:
            TaskError: there is no key, or it is not valid.
        """
        self._reload()
        if not self:
            return ANYBODY
        if not key:
            raise _refusal("missingApiKey", "An API key is needed; send one.")
        given = hash_key(key)
        found: KeyRecord | None = None
        for valid, record in self._records.items():  # compare with every key: constant time
            if hmac.compare_digest(valid, given):
                found = record
        if found is None:
            raise _refusal("invalidApiKey", "Invalid API key.")
        _check_expiry(found)
        return found.name

    def check_owner(self, owner: str) -> None:
        """Check that a client that authenticated earlier may still send tasks.

        Raises:
            TaskError: its key was removed, or has expired, or keys are needed now.
        """
        self._reload()
        record = self._find(owner)
        if record is not None:
            _check_expiry(record)
        elif self:
            raise _refusal("invalidApiKey", "This API key is not valid any more.")

    def record(self, owner: str) -> KeyRecord:
        """Return the limits of an owner; one without a key has none."""
        return self._find(owner) or KeyRecord(name=owner)

    def _find(self, owner: str) -> KeyRecord | None:
        return next((r for r in self._records.values() if r.name == owner), None)

    def _reload(self) -> None:
        """Read the file again if it has changed; keep the present keys if it cannot be read."""
        signature = _signature(self._file)
        if self._file is None or signature == self._signature:
            return
        had_file = self._signature is not None
        self._signature = signature
        if signature is None and had_file:
            log.error("key file %s is gone; the keys stay as they were", self._file)
            return
        try:
            self._records = read_key_file(self._file) | self._fixed
        except SettingsError as e:
            log.error("%s; the keys stay as they were", e)
            return
        self._is_needed |= bool(self._records)
        log.info("key file %s has changed; %d keys are valid", self._file, len(self._records))


def _signature(file: Path | None) -> Signature:
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)


def _check_expiry(record: KeyRecord) -> None:
    if record.is_expired:
        raise _refusal("invalidApiKey", f"This API key expired at {record.expires:%Y-%m-%d %H:%M}.")


def _refusal(code: str, message: str) -> TaskError:
    """Return an authentication error: clients match exactly these fields, and no taskUUID."""
    return TaskError(code, message, "apiKey", {"type": "string", "taskType": "authentication"})
