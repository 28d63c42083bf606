"""Checkpoint fingerprint: a hash over config.json and both ends of every weight file."""

import hashlib
from pathlib import Path

from model.errors import CheckpointError

_SAMPLE_BYTES = 1 << 20


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits over config.json and both ends of every safetensors file.

    A file's first bytes name its tensors, its last ones are weights; its size is taken too. Other
    files, such as this project's own step_cache.json, do not count.

    Raises:
        CheckpointError: there is no weight file to read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes())
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as e:
        raise CheckpointError(f"{e.filename} cannot be read: {e.strerror}") from None
    return digest.hexdigest()[:16]
