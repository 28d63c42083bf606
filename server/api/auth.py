"""API keys: random, hashed at rest, compared in constant time."""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from server.runware.errors import TaskError
from server.settings import SettingsError
from server.tasks.admission import ANYBODY

ENVIRONMENT = "HYIMAGE_API_KEYS"


def hash_key(key: str) -> str:
    """Return the hash that is stored of a key. Keys are long and random: a plain hash suffices."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The keys that may be used: hash -> name."""

    def __init__(self, names_by_hash: Mapping[str, str]) -> None:
        self._names_by_hash = dict(names_by_hash)

    @classmethod
    def load(cls, file: Path) -> "Keys":
        """Read the key file, if there is one, and the comma-separated environment variable.

        Raises:
            SettingsError: the file is not what `hyimage keys` writes.
        """
        names = read_key_file(file)
        from_environment = filter(None, map(str.strip, os.environ.get(ENVIRONMENT, "").split(",")))
        for index, key in enumerate(from_environment):
            names[hash_key(key)] = f"environment-{index}"
        return cls(names)

    def __bool__(self) -> bool:
        return bool(self._names_by_hash)

    def check(self, key: str | None) -> str:
        """Return the name of the key's owner.

        Raises:
            TaskError: there is no key, or it is not valid.
        """
        if not self:
            return ANYBODY
        if not key:
            raise _refusal("missingApiKey", "An API key is needed; send one.")
        given = hash_key(key)
        owner = None
        for valid, name in self._names_by_hash.items():  # compare with every key: constant time
            if hmac.compare_digest(valid, given):
                owner = name
        if owner is None:
            raise _refusal("invalidApiKey", "Invalid API key.")
        return owner


def add_key(file: Path, name: str) -> str:
    """Make a key, store its hash under `name`, and return it; it cannot be shown again.

    Raises:
        SettingsError: the name is taken.
    """
    names = read_key_file(file)
    if name in names.values():
        raise SettingsError(f"there is a key called {name!r} already; remove it first")
    key = f"hy-{secrets.token_urlsafe(32)}"
    _write_key_file(file, {**names, hash_key(key): name})
    return key


def remove_key(file: Path, name: str) -> None:
    """Forget the key called `name`.

    Raises:
        SettingsError: there is none.
    """
    names = read_key_file(file)
    if name not in names.values():
        raise SettingsError(f"there is no key called {name!r}; there are: {sorted(names.values())}")
    _write_key_file(file, {k: v for k, v in names.items() if v != name})


def read_key_file(file: Path) -> dict[str, str]:
    """Return hash -> name; a file that is not there holds no keys.

    Raises:
        SettingsError: the file is not what this module writes.
    """
    if not file.exists():
        return {}
    try:
        names: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["keys"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise SettingsError(f"key file {file} cannot be read ({e}); make it anew") from None
    return names


def _write_key_file(file: Path, names: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps({"keys": names}, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def _refusal(code: str, message: str) -> TaskError:
    """Return an authentication error: clients match exactly these fields, and no taskUUID."""
    return TaskError(code, message, "apiKey", {"type": "string", "taskType": "authentication"})
