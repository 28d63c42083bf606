"""Everything here needs a CUDA device: `make test-gpu`. It has never been run by its authors."""

from pathlib import Path

import pytest
import torch

from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.transformer import HunyuanImage
from tests.conftest import SMALL_CONFIG, Tolerance
from training.random_checkpoint import write_random_checkpoint

CUDA_BFLOAT16 = LoadOptions(device="cuda:0", dtype=torch.bfloat16)
# bfloat16 sums in another order: about three bits of its eight.
ROUGHLY: Tolerance = {"atol": 5e-2, "rtol": 5e-2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.fail("tests/gpu needs a CUDA device; `make test` runs everything else")


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sides that the matrix units of a GPU take: all are multiples of 64."""
    folder = tmp_path_factory.mktemp("wide")
    config = {
        **SMALL_CONFIG,
        "hidden_size": 256,
        "attention_head_dim": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 256,
        "moe_intermediate_size": 256,
        "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 256, "depth": 2},
    }
    write_random_checkpoint(folder, config)
    return folder


@pytest.fixture
def on_cpu(wide_checkpoint: Path) -> HunyuanImage:
    return load_model(wide_checkpoint, LoadOptions(dtype=torch.bfloat16))
