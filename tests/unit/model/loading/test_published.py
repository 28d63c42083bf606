"""Quantized checkpoints that others publish: they load to the values their makers dequantize to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import CheckpointError, ConfigError
from model.kv_cache import prefill
from model.loading.build import load_model
from model.loading.checkpoint import INDEX_NAME
from model.loading.options import LoadOptions
from model.loading.quantize_folder import quantize_folder
from model.mesh import Mesh, RankGroup
from model.quantization.published import (
    NF4_STATE,
    dequantize_int8,
    dequantize_nf4,
    find_published_format,
)
from model.quantization.scheme import SCALE_SUFFIX, SCHEMES, dequantize
from tests.conftest import FLOAT32, SMALL_CONFIG
from training.random_checkpoint import write_random_checkpoint

Tensors = dict[str, Tensor]
BITSANDBYTES = Path(__file__).with_name("bitsandbytes.safetensors")  # written by 0.50.2
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
TABLE = load_file(BITSANDBYTES)["flat.weight.quant_map"]
QKV = "model.layers.0.self_attn.qkv_proj.weight"
DENSE = "lm_head.weight"  # never quantized here


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    config = {
        **SMALL_CONFIG,
        "num_hidden_layers": 3,
        "attention_head_dim": 64,
        "moe_intermediate_size": 128,
    }
    write_random_checkpoint(folder, config)
    return folder


def is_matrix(name: str) -> bool:
    """Return whether a tensor is the weight of a linear layer of the decoder, or the head's."""
    linear = ("qkv_proj.weight", "o_proj.weight", "gate_and_up_proj.weight", "down_proj.weight")
    return name.endswith(linear) or name == DENSE


def publish(source: Path, target: Path, convert: Callable[[str, Tensor], Tensors]) -> Path:
    """Write a folder whose matrices another tool has converted; scales go to a file of their own.

    Files of scales are apart: the index may put them anywhere.
    """
    shutil.copytree(source, target)
    index = json.loads((target / INDEX_NAME).read_text())
    apart: Tensors = {}
    for path in sorted(target.glob("*.safetensors")):
        tensors: Tensors = {}
        for name, tensor in load_file(path).items():
            converted = convert(name, tensor) if is_matrix(name) else {name: tensor}
            tensors[name] = converted.pop(name)
            apart |= converted
        save_file(tensors, path)
    save_file(apart, target / "scales.safetensors")
    index["weight_map"] |= dict.fromkeys(apart, "scales.safetensors")
    (target / INDEX_NAME).write_text(json.dumps(index))
    return target


def set_config(folder: Path, quantization: dict[str, Any]) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(fields))


def to_modelopt(shape: str, kept: tuple[str, ...] = ()) -> Callable[[str, Tensor], Tensors]:
    def convert(name: str, weight: Tensor) -> Tensors:
        if name in kept:
            return {name: weight}
        largest = weight.float().abs().amax() if shape == "scalar" else weight.float().abs().amax(1)
        scale = (largest / 448).reshape(() if shape == "scalar" else (-1,))
        if shape == "column":
            scale = scale.unsqueeze(1)
        packed = (weight.float() / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
        stem = name.removesuffix("weight")
        unused = {f"{stem}input_scale": torch.ones(())} if shape == "scalar" else {}
        return {name: packed, f"{stem}weight_scale": scale, **unused}

    return convert


def write_modelopt(folder: Path, algorithm: str = "FP8") -> Path:
    fields = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    (folder / "hf_quant_config.json").write_text(json.dumps(fields))
    return folder


def to_int8(name: str, weight: Tensor) -> Tensors:
    largest = weight.float().abs().amax(1)
    packed = (weight.float() * (127 / largest.unsqueeze(1))).round().to(torch.int8)
    stem = name.removesuffix("weight")
    return {
        name: packed, f"{stem}SCB": largest, f"{stem}weight_format": torch.tensor(0).to(torch.uint8)
    }  # fmt: skip


def to_nf4(name: str, weight: Tensor) -> Tensors:
    flat = weight.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
    largest = blocks.abs().amax(1)
    units = (blocks / largest.clamp_min(1e-20).unsqueeze(1)).flatten()[: len(flat)]
    indices = (units.unsqueeze(1) - TABLE).abs().argmin(1).to(torch.uint8)
    high, low = indices.unflatten(0, (-1, 2)).unbind(1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [*weight.shape]}
    return {
        name: ((high << 4) | low).unsqueeze(1),
        f"{name}.absmax": largest,
        f"{name}.quant_map": TABLE.clone(),
        f"{name}.{NF4_STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


@pytest.mark.parametrize("kind", ["flat", "nested"])
def test_nf4_is_dequantized_as_bitsandbytes_does(kind: str) -> None:
    stored = load_file(BITSANDBYTES)
    prefix = f"{kind}.weight."
    beside = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    ours = dequantize_nf4(stored[f"{kind}.weight"], beside, beside.pop(NF4_STATE))
    assert torch.equal(ours.bfloat16(), stored[f"{kind}.dequantized"])


def test_int8_is_dequantized_as_bitsandbytes_does() -> None:
    stored = load_file(BITSANDBYTES)
    ours = dequantize_int8(stored["int8.weight"], stored["int8.SCB"])
    torch.testing.assert_close(ours, stored["int8.dequantized"], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("shape", ["scalar", "row", "column"])
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tensor=RankGroup(1, 2), rank=1, size=2)])
def test_float8_weights_and_scales_are_held_as_they_are_stored(
    original: Path, tmp_path: Path, shape: str, mesh: Mesh
) -> None:
    folder = write_modelopt(publish(original, tmp_path / "published", to_modelopt(shape)))
    loaded = dict(load_model(folder, FLOAT32).named_parameters())
    stored = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    assert torch.equal(loaded[QKV].data.float(), stored[QKV].float())
    rows = len(stored[QKV])
    scale = stored[QKV.removesuffix("weight") + "weight_scale"].reshape(-1, 1).expand(rows, 1)
    assert torch.equal(loaded[QKV + SCALE_SUFFIX].data, scale)
    head = stored[DENSE].float() * stored["lm_head.weight_scale"].reshape(-1, 1)
    assert torch.equal(loaded[DENSE].data, head)
    name = "model.layers.1.mlp.experts.down_proj"
    part = dict(load_model(folder, FLOAT32, mesh=mesh).named_parameters())
    columns = loaded[name].shape[-1] // mesh.tensor.size
    first = mesh.tensor.rank * columns
    whole = loaded[name].data.float()[..., first : first + columns]
    assert torch.equal(part[name].data.float(), whole)
    assert torch.equal(part[name + SCALE_SUFFIX].data, loaded[name + SCALE_SUFFIX].data)


def test_matrices_that_were_left_out_of_float8_are_quantized_while_they_are_loaded(
    original: Path, tmp_path: Path
) -> None:
    convert = to_modelopt("row", kept=(QKV, DENSE))
    folder = write_modelopt(publish(original, tmp_path / "published", convert))
    loaded = dict(load_model(folder, FLOAT32).named_parameters())
    plain = dict(load_model(original, FLOAT32).named_parameters())
    assert torch.equal(loaded[DENSE].data, plain[DENSE].data)
    near = dequantize(loaded[QKV].data, loaded[QKV + SCALE_SUFFIX].data, torch.float32)
    assert (near - plain[QKV].data).square().mean().sqrt() < 0.03 * plain[QKV].data.std()


@pytest.mark.parametrize(
    ("config", "convert", "worst"), [(INT8, to_int8, 0.01), (NF4, to_nf4, 0.1)], ids=["8", "4"]
)
@pytest.mark.parametrize("scheme", ["none", "int4"])
@pytest.mark.parametrize("rank", [None, 1])
def test_bitsandbytes_weights_are_dequantized_or_quantized_again(
    original: Path,
    tmp_path: Path,
    config: dict[str, Any],
    convert: Callable[[str, Tensor], Tensors],
    worst: float,
    scheme: str,
    rank: int | None,
) -> None:
    folder = publish(original, tmp_path / "published", convert)
    set_config(folder, config)
    mesh = Mesh() if rank is None else Mesh(tensor=RankGroup(rank, 2), rank=rank, size=2)
    options = LoadOptions(dtype=torch.float32, quantization=scheme)
    loaded = dict(load_model(folder, options, mesh=mesh).named_parameters())
    expected = load_model(original, FLOAT32, mesh=mesh)
    for name, value in expected.named_parameters():
        held = loaded[name].data
        if name + SCALE_SUFFIX in loaded:
            held = dequantize(held, loaded[name + SCALE_SUFFIX].data, torch.float32)
        limit = worst + (0.12 if scheme == "int4" else 0.0)
        error = (held.float() - value.data).square().mean().sqrt()
        assert error <= limit * value.data.square().mean().sqrt(), name


def test_experts_of_a_published_float8_folder_are_offloaded_to_the_disk(
    original: Path, tmp_path: Path
) -> None:
    folder = write_modelopt(publish(original, tmp_path / "published", to_modelopt("scalar")))
    whole = load_model(folder, FLOAT32)
    total = sum(p.nbytes for p in whole.parameters())
    options = LoadOptions(dtype=torch.float32, offload="disk", weights_bytes=total - 1)
    fetched = load_model(folder, options)
    assert fetched.expert_offload is not None
    with torch.inference_mode():
        ours = prefill(fetched, list(range(30))).hidden_1SD
        assert torch.equal(ours, prefill(whole, list(range(30))).hidden_1SD)


def test_experts_that_would_be_converted_at_every_read_stay_off_the_disk(
    original: Path, tmp_path: Path
) -> None:
    folder = publish(original, tmp_path / "published", to_int8)
    set_config(folder, INT8)
    total = sum(p.nbytes for p in load_model(folder, FLOAT32).parameters())
    options = LoadOptions(dtype=torch.float32, offload="disk", weights_bytes=total - 1)
    with pytest.raises(ConfigError, match=r"worker\.offload to 'cpu'"):
        load_model(folder, options)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({**NF4, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes with fp4"),
        ({"bits": 4}, "an unnamed method"),
    ],
    ids=str,
)
def test_other_formats_are_refused_by_name_with_what_would_work(
    original: Path, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "published"))
    set_config(folder, config)
    with pytest.raises(CheckpointError, match=f"{named}.*worker.quantization"):
        load_model(folder)


def test_float8_alone_in_the_layers_loads(original: Path, tmp_path: Path) -> None:
    convert = to_modelopt("row", kept=(DENSE,))
    folder = write_modelopt(publish(original, tmp_path / "published", convert))
    assert load_model(folder, FLOAT32).layers


def test_a_missing_tensor_beside_a_weight_is_named(original: Path, tmp_path: Path) -> None:
    folder = publish(original, tmp_path / "published", to_nf4)
    set_config(folder, NF4)
    tensors = load_file(folder / "scales.safetensors")
    del tensors[f"{QKV}.absmax"]
    save_file(tensors, folder / "scales.safetensors")
    with pytest.raises(CheckpointError, match=f"{QKV}.absmax"):
        load_model(folder)


def test_formats_are_found_in_either_file(original: Path, tmp_path: Path) -> None:
    assert find_published_format(original) is None
    folder = Path(shutil.copytree(original, tmp_path / "published"))
    set_config(folder, {"quant_method": "modelopt", "quant_algo": "FP8"})
    assert find_published_format(folder) == "ModelOpt FP8"
    with pytest.raises(ConfigError, match="float8 already"):
        load_model(folder, LoadOptions(quantization="int4"))
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize_folder(folder, tmp_path / "again", SCHEMES["int8"])
    write_modelopt(folder, "W4A8_AWQ")
    with pytest.raises(CheckpointError, match="W4A8_AWQ"):
        load_model(folder)


def test_a_scale_of_another_size_is_named(original: Path, tmp_path: Path) -> None:
    folder = write_modelopt(publish(original, tmp_path / "published", to_modelopt("row")))
    tensors = load_file(folder / "scales.safetensors")
    scale = QKV.removesuffix("weight") + "weight_scale"
    tensors[scale] = torch.ones(3)
    save_file(tensors, folder / "scales.safetensors")
    with pytest.raises(CheckpointError, match=scale):
        load_model(folder)
