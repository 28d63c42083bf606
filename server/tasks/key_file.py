"""The key file: API keys as hashes, with what each may do. `hyimage keys` writes it."""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from server.settings import SettingsError


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class KeyRecord:
    """What is known of a key: whose it is, and its limits. None: no limit."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    expires: Annotated[datetime | None, Field()] = None
    images_per_day: Annotated[int | None, Field(ge=1)] = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # share of the worker

    @property
    def is_expired(self) -> bool:
        return self.expires is not None and _aware(self.expires) <= datetime.now(UTC)


_RECORD = TypeAdapter(KeyRecord)


def hash_key(key: str) -> str:
    """Return the hash that is stored of a key. Keys are long and random: a plain hash suffices."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(file: Path, name: str, **limits: Any) -> str:
    """Make a key, store its hash under `name`, and return it; it cannot be shown again.

    Raises:
        SettingsError: the name is taken, or a limit is out of range.
    """
    records = read_key_file(file)
    if any(record.name == name for record in records.values()):
        raise SettingsError(f"there is a key called {name!r} already; remove it first")
    key = f"hy-{secrets.token_urlsafe(32)}"
    _write_key_file(file, {**records, hash_key(key): _checked({"name": name, **limits})})
    return key


def change_key(file: Path, name: str, **limits: Any) -> None:
    """Change limits of the key called `name`.

    Raises:
        SettingsError: there is none, or a limit is out of range.
    """
    records = read_key_file(file)
    hashed = _find(records, name)
    _write_key_file(file, {**records, hashed: _checked({**asdict(records[hashed]), **limits})})


def remove_key(file: Path, name: str) -> None:
    """Forget the key called `name`.

    Raises:
        SettingsError: there is none.
    """
    records = read_key_file(file)
    hashed = _find(records, name)
    _write_key_file(file, {k: record for k, record in records.items() if k != hashed})


def read_key_file(file: Path) -> dict[str, KeyRecord]:
    """Return hash -> record; a file that is not there holds no keys.

    Raises:
        SettingsError: the file is not what this module writes.
    """
    if not file.exists():
        return {}
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["keys"]
        # Older files have the name alone.
        return {
            hashed: _RECORD.validate_python({"name": value} if isinstance(value, str) else value)
            for hashed, value in stored.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        reason = str(e).replace("\n", " ")
        raise SettingsError(f"key file {file} cannot be read ({reason}); make it anew") from None


def _find(records: Mapping[str, KeyRecord], name: str) -> str:
    for hashed, record in records.items():
        if record.name == name:
            return hashed
    names = sorted(record.name for record in records.values())
    raise SettingsError(f"there is no key called {name!r}; there are: {names}")


def _checked(values: dict[str, Any]) -> KeyRecord:
    try:
        record = _RECORD.validate_python(values)
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors())
        raise SettingsError(f"key {values['name']!r}: {faults}") from None
    return record if record.expires is None else replace(record, expires=_aware(record.expires))


def _aware(moment: datetime) -> datetime:
    """Return a moment with its zone; without one it is meant in UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _write_key_file(file: Path, records: Mapping[str, KeyRecord]) -> None:
    """Replace the file whole: a running server reads it at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = {hashed: _RECORD.dump_python(r, mode="json") for hashed, r in records.items()}
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(json.dumps({"keys": stored}, indent=2) + "\n")
    Path(partial).replace(file)
