"""Everything here needs a CUDA device: `make test-gpu`. Its authors have rehearsed it without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SMALL_CONFIG
from tests.gpu.rehearsal import IS_REHEARSAL, cuda_at_hand
from training.random_checkpoint import write_random_checkpoint

# Sides that the matrix units of a GPU take: all are multiples of 64.
WIDE_CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "hidden_size": 256,
    "attention_head_dim": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 256, "depth": 2},
}
# Experts of 50 MB a layer: far more in all than what kernels take beside the plan. A CUDA that
# pretends takes nothing there.
REAL_SIDES = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "moe_intermediate_size": 1024,
    "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 1024, "depth": 2},
}
HEAVY_CONFIG: dict[str, Any] = {
    **WIDE_CONFIG,
    "num_hidden_layers": 16,
    **({} if IS_REHEARSAL else REAL_SIDES),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _cuda() -> Iterator[None]:
    if not IS_REHEARSAL and not torch.cuda.is_available():
        pytest.fail("tests/gpu needs a CUDA device; `make test` runs everything else")
    # float32 means float32: cuDNN's convolutions round to TF32 unless this is off.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with cuda_at_hand():
        yield


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_random_checkpoint(folder, WIDE_CONFIG)
    return folder


@pytest.fixture(scope="session")
def unrouted_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All experts are chosen for every token: rounding cannot flip a choice."""
    folder = tmp_path_factory.mktemp("unrouted")
    write_random_checkpoint(folder, {**WIDE_CONFIG, "moe_topk": WIDE_CONFIG["num_experts"]})
    return folder


@pytest.fixture(scope="session")
def heavy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heavy")
    write_random_checkpoint(folder, HEAVY_CONFIG)
    return folder
