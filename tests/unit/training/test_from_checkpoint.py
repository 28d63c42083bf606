from pathlib import Path

import pytest
import torch

from model.loading.build import load_model
from model.loading.options import LoadOptions
from training.export import build_trained
from training.from_checkpoint import start_from_checkpoint
from training.transformer import TransformerTrainer

TINY = Path("checkpoints/tiny")


def test_a_run_from_a_checkpoint_exports_its_weights_and_goes_on_at_a_step(tmp_path: Path) -> None:
    start_from_checkpoint(TINY, tmp_path, step=70)
    trained = dict(build_trained(tmp_path).named_parameters())
    loaded = load_model(TINY, LoadOptions(dtype=torch.float32, skip=()))
    for name, parameter in loaded.named_parameters():
        if not name.startswith("vision_"):  # random in every run
            assert torch.equal(trained[name], parameter), name
    assert TransformerTrainer(tmp_path).step == 70


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "transformer.pt").write_bytes(b"a run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        start_from_checkpoint(TINY, tmp_path, step=0)
    assert (tmp_path / "transformer.pt").read_bytes() == b"a run"
