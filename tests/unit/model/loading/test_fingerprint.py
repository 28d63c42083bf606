from pathlib import Path

from cache.calibration import FILE_NAME
from model.loading.fingerprint import fingerprint


def test_a_fingerprint_changes_with_the_weights_and_not_with_other_files(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = fingerprint(tmp_path)
    assert before == fingerprint(tiny_checkpoint)
    (tmp_path / FILE_NAME).write_text("{}")
    assert fingerprint(tmp_path) == before
    weights = sorted(tmp_path.glob("*.safetensors"))[0]
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert fingerprint(tmp_path) != before
