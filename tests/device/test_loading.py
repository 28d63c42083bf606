"""Loading to a CUDA device: from pinned memory, without waiting for the device tensor by tensor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import CheckpointError
from model.loading.build import load_model
from model.loading.expert_offload import experts_of
from model.loading.expert_offloader import ExpertOffloader, staging_bytes
from model.loading.options import LoadOptions
from model.loading.quantize_folder import quantize_folder
from model.mesh import Mesh, RankGroup
from model.quantization.scheme import SCHEMES
from model.transformer import HunyuanImage
from tests.device.pretend_cuda import bare
from tests.device.pretend_functions import pretended_cuda
from tests.unit.model.loading.test_published import (
    INT8,
    NF4,
    publish,
    set_config,
    to_int8,
    to_modelopt,
    to_nf4,
    write_modelopt,
)

ON_DEVICE = LoadOptions(device="cuda:0")
CASES = {
    "bfloat16": ON_DEVICE,
    "float32": replace(ON_DEVICE, dtype=torch.float32),
    "fp8": replace(ON_DEVICE, quantization="fp8"),
    "int8": replace(ON_DEVICE, quantization="int8"),
    "int4": replace(ON_DEVICE, quantization="int4"),
    "layers": replace(ON_DEVICE, layer_devices=("cuda:0", "cuda:1")),
}
MESHES = {"alone": Mesh(), "rank 1 of 2": Mesh(tensor=RankGroup(1, 2), rank=1, size=2)}


@pytest.mark.parametrize("mesh", list(MESHES))
@pytest.mark.parametrize("case", list(CASES))
def test_loading_copies_from_pinned_memory_and_waits_once_for_each_file_and_device(
    wide_checkpoint: Path, case: str, mesh: str
) -> None:
    options = CASES[case]
    expected = load_model(
        wide_checkpoint, replace(options, device="cpu", layer_devices=()), mesh=MESHES[mesh]
    )
    with pretended_cuda() as cuda:
        loaded = load_model(wide_checkpoint, options, mesh=MESHES[mesh])
        num_files = len(list(wide_checkpoint.glob("*.safetensors")))
        num_devices = max(1, len(options.layer_devices))
        assert len(cuda.record.syncs) <= num_files * num_devices, cuda.record.describe_syncs()
        assert "copy" not in cuda.record.describe_syncs()
        assert cuda.record.hazards == []
        parameters = dict(loaded.named_parameters())
        for name, parameter in expected.named_parameters():
            assert torch.equal(bare(parameters[name].data), parameter.data), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(
    wide_checkpoint: Path, tmp_path: Path, value: float
) -> None:
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    for file in wide_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name][5, 7] = value
            save_file(tensors, path)
    with pretended_cuda(), pytest.raises(CheckpointError, match=name):
        load_model(tmp_path, ON_DEVICE)


def load_offloaded(folder: Path, mesh: Mesh) -> HunyuanImage:
    """Return the model with one layer's experts resident and three layers' on the disk."""
    whole = load_model(folder, LoadOptions(), mesh=mesh)
    layer = staging_bytes(experts_of(whole, [0])[0])
    budget = sum(p.nbytes for p in whole.parameters()) - layer
    options = replace(ON_DEVICE, weights_bytes=budget, offload="disk")
    return load_model(folder, options, mesh=mesh)


@pytest.mark.parametrize("mesh", list(MESHES))
@pytest.mark.parametrize("scheme", ["none", "fp8"])
def test_experts_on_disk_are_checked_once_and_then_fetched_without_waiting(
    wide_checkpoint: Path, tmp_path: Path, scheme: str, mesh: str
) -> None:
    folder = wide_checkpoint
    if scheme != "none":
        folder = tmp_path / scheme
        quantize_folder(wide_checkpoint, folder, SCHEMES[scheme])
    expected = load_model(folder, LoadOptions(), mesh=MESHES[mesh])
    with pretended_cuda() as cuda:
        transformer = load_offloaded(folder, MESHES[mesh])
        offloader = transformer.expert_offload
        assert isinstance(offloader, ExpertOffloader)
        every = range(8)
        cuda.record.clear()
        for layer in offloader.layers:
            offloader.acquire(layer, every)
        assert len(cuda.record.syncs) <= len(offloader.layers), cuda.record.describe_syncs()
        assert "copy" not in cuda.record.describe_syncs()
        cuda.record.clear()
        for layer in 2 * offloader.layers:
            offloader.acquire(layer, every)
            for name, parameter in experts_of(expected, [layer])[layer].named_parameters():
                fetched = getattr(experts_of(transformer, [layer])[layer], name)
                assert torch.equal(bare(fetched.data), parameter.data), name
        assert cuda.record.syncs == []
        assert cuda.record.hazards == []
        offloader.close()


@pytest.mark.parametrize("form", ["FP8", "INT8", "NF4"])
def test_published_checkpoints_are_dequantized_on_the_device(
    wide_checkpoint: Path, tmp_path: Path, form: str
) -> None:
    convert = {"FP8": to_modelopt("scalar"), "INT8": to_int8, "NF4": to_nf4}[form]
    folder = publish(wide_checkpoint, tmp_path / "published", convert)
    if form == "FP8":
        write_modelopt(folder)
    else:
        set_config(folder, INT8 if form == "INT8" else NF4)
    expected = load_model(folder, LoadOptions())
    with pretended_cuda() as cuda:
        loaded = dict(load_model(folder, ON_DEVICE).named_parameters())
        num_files = len(list(folder.glob("*.safetensors")))
        assert len(cuda.record.syncs) <= num_files, cuda.record.describe_syncs()
        assert cuda.record.hazards == []
        for name, parameter in expected.named_parameters():
            assert torch.equal(bare(loaded[name].data), parameter.data), name


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_checkpoint_quantized_on_a_device_equals_one_quantized_here(
    wide_checkpoint: Path, tmp_path: Path, scheme: str
) -> None:
    here = quantize_folder(wide_checkpoint, tmp_path / "here", SCHEMES[scheme])
    with pretended_cuda():
        there = quantize_folder(
            wide_checkpoint, tmp_path / "there", SCHEMES[scheme], device="cuda:0"
        )
    assert [error.name for error in here] == [error.name for error in there]
    for path in (tmp_path / "here").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
