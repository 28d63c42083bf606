"""Two GPUs generate what one generates. NCCL takes the calls that gloo takes in tests/parallel."""

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from model.kv_cache import prefill
from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.mesh import join_mesh, leave_mesh
from tests.gpu.conftest import ROUGHLY

IDS = list(range(60))


@pytest.fixture(autouse=True)
def _two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


def hidden(checkpoint: Path, options: LoadOptions) -> torch.Tensor:
    with torch.inference_mode():
        return prefill(load_model(checkpoint, options), IDS).hidden_1SD.float().cpu()


def run_rank(rank: int, checkpoint: Path, folder: Path) -> None:
    device = f"cuda:{rank}"
    torch.cuda.set_device(rank)
    mesh = join_mesh(rank, 1, 2, folder / "rendezvous", device)
    transformer = load_model(checkpoint, LoadOptions(device=device), mesh=mesh)
    with torch.inference_mode():
        own = prefill(transformer, IDS).hidden_1SD.float().cpu()
    torch.save(own, folder / f"{rank}.pt")
    leave_mesh()


def test_layers_on_two_devices_give_the_same_numbers(wide_checkpoint: Path) -> None:
    one = LoadOptions(device="cuda:0")
    two = LoadOptions(device="cuda:0", layer_devices=("cuda:0", "cuda:1"))
    assert torch.equal(hidden(wide_checkpoint, two), hidden(wide_checkpoint, one))


def test_two_tensor_ranks_give_the_numbers_of_one(wide_checkpoint: Path, tmp_path: Path) -> None:
    spawn(run_rank, args=(wide_checkpoint, tmp_path), nprocs=2)
    alone = hidden(wide_checkpoint, LoadOptions(device="cuda:0"))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, **ROUGHLY)
