"""Rounded weights: how far they are off, how they lie on disk, and that both ways in are one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import CheckpointError, ConfigError
from model.loading.build import build_skeleton, load_model
from model.loading.options import LoadOptions
from model.loading.quantize_folder import quantize_folder
from model.loading.weight_map import list_slots
from model.mesh import Mesh, RankGroup
from model.quantization.modules import QuantizedExperts
from model.quantization.scheme import SCALE_SUFFIX, SCHEMES, dequantize, quantize
from model.transformer import HunyuanImage
from tests.conftest import FLOAT32, SMALL_CONFIG
from training.random_checkpoint import write_random_checkpoint

NAMES = sorted(SCHEMES)
# Root-mean-square error over that of the weights, for normal ones: half a unit in the last place.
WORST = {"fp8": 0.03, "int8": 0.008, "int4": 0.11}


@pytest.fixture(scope="module")
def divisible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose groups two ranks divide."""
    folder = tmp_path_factory.mktemp("divisible")
    config = {**SMALL_CONFIG, "attention_head_dim": 64, "moe_intermediate_size": 256}
    write_random_checkpoint(folder, config)
    return folder


def options(scheme: str) -> LoadOptions:
    return LoadOptions(dtype=torch.float32, quantization=scheme)


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(8, 16), groups=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_a_quantized_matrix_is_near_and_quantizes_to_itself(
    name: str, rows: int, groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * 128, generator=generator) * 0.05
    packed, scale = quantize(weight, SCHEMES[name])
    near = dequantize(packed, scale, torch.float32)
    assert (near - weight).square().mean().sqrt() / weight.square().mean().sqrt() < WORST[name]
    again = dequantize(*quantize(near, SCHEMES[name]), torch.float32)
    tolerance = 0.01 if name != "int4" else 0.25  # which may choose other scales
    assert (again - near).abs().max() <= tolerance * weight.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_further_off_than_half_a_step(name: str) -> None:
    weight = torch.linspace(-1, 1, 256).repeat(4, 1)
    packed, scale = quantize(weight, SCHEMES[name])
    error = (dequantize(packed, scale, torch.float32) - weight).abs()
    step = {"int8": 1 / 127, "int4": 1 / 7 * 1.5, "fp8": 1 / 8}[name]  # int4 may clip
    assert error.max() <= 0.51 * step


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_tiny_values_stay_finite(name: str) -> None:
    weight = torch.zeros(2, 128)
    weight[1, 0] = 1e-30
    near = dequantize(*quantize(weight, SCHEMES[name]), torch.float32)
    assert near.isfinite().all()
    assert near.abs().max() <= 1e-29


@pytest.mark.parametrize("name", NAMES)
def test_what_is_quantized_at_load_equals_what_was_written_to_disk(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    errors = quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES[name])
    assert {e.name.split(".")[-2] for e in errors} == {
        "qkv_proj", "o_proj", "gate_and_up_proj", "down_proj"
    }  # fmt: skip
    assert max(e.relative for e in errors) < WORST[name]
    at_load = load_model(tiny_checkpoint, options(name)).state_dict()
    from_disk = load_model(tmp_path / "small", FLOAT32).state_dict()
    assert at_load.keys() == from_disk.keys()
    for key, value in at_load.items():
        assert value.dtype == from_disk[key].dtype, key
        assert torch.equal(value.float(), from_disk[key].float()), key
    assert not (tmp_path / "small.partial").exists()


def dense(transformer: HunyuanImage, quantized: HunyuanImage) -> HunyuanImage:
    """Return the model with the dequantized values of every quantized matrix."""
    parameters = dict(quantized.named_parameters())
    for name, value in transformer.named_parameters():
        packed, scale = parameters[name], parameters.get(f"{name}_scale")
        value.copy_(packed if scale is None else dequantize(packed, scale, torch.float32))
    return transformer


@pytest.mark.parametrize("name", NAMES)
def test_layers_compute_with_exactly_the_dequantized_weights(
    name: str, tiny_checkpoint: Path
) -> None:
    quantized = load_model(tiny_checkpoint, options(name))
    expected = dense(load_model(tiny_checkpoint, FLOAT32), quantized)
    x = torch.randn(2, 5, quantized.config.hidden_size, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(quantized.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours.mlp(x), theirs.mlp(x), atol=1e-5, rtol=1e-5)
        projected = ours.self_attn.qkv_proj(x)
        torch.testing.assert_close(projected, theirs.self_attn.qkv_proj(x), atol=1e-5, rtol=1e-5)


def test_the_grouped_products_of_a_gpu_use_the_same_weights(tiny_checkpoint: Path) -> None:
    experts = load_model(tiny_checkpoint, options("int8")).layers[0].mlp.experts
    assert isinstance(experts, QuantizedExperts)
    for name in ("gate_and_up_proj", "down_proj"):
        packed, scale = getattr(experts, name), getattr(experts, name + SCALE_SUFFIX)
        whole = dequantize(packed, scale, torch.float32)
        for expert in range(len(whole)):
            assert torch.equal(whole[expert], experts.weight_of(name, expert, torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_router_norms_embeddings_head_and_vae_stay_as_they_are(
    name: str, tiny_checkpoint: Path
) -> None:
    plain = dict(load_model(tiny_checkpoint, FLOAT32).named_parameters())
    quantized = dict(load_model(tiny_checkpoint, options(name)).named_parameters())
    kept = [key for key in plain if quantized[key].dtype == torch.float32]
    for part in ("gate.wg", "layernorm", "wte", "lm_head", "patch_embed", "final_layer", "vae."):
        assert any(part in key for key in kept), part
    for key in kept:
        assert torch.equal(plain[key], quantized[key]), key
    changed = plain.keys() - set(kept)
    assert all("self_attn" in key or ".mlp." in key for key in changed)


def dequantized_output(transformer: HunyuanImage) -> Tensor:
    """Return the first layer's output projection."""
    parameters = dict(transformer.named_parameters())
    name = "model.layers.0.self_attn.o_proj.weight"
    return dequantize(parameters[name], parameters[f"{name}_scale"], torch.float32)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_shard_of_a_quantized_checkpoint(
    name: str, rank: int, divisible: Path, tmp_path: Path
) -> None:
    quantize_folder(divisible, tmp_path / "small", SCHEMES[name])
    whole = dequantized_output(load_model(tmp_path / "small", FLOAT32))
    mesh = Mesh(tensor=RankGroup(rank, 2), rank=rank, size=2)
    shard = dequantized_output(load_model(tmp_path / "small", FLOAT32, mesh=mesh))
    assert torch.equal(shard, whole.chunk(2, dim=1)[rank])


def test_a_scale_that_two_ranks_would_share_is_refused(tiny_checkpoint: Path) -> None:
    skeleton = build_skeleton(
        load_model(tiny_checkpoint).config,
        mesh=Mesh(tensor=RankGroup(0, 2), size=2),
        scheme=SCHEMES["int8"],
    )
    with pytest.raises(ConfigError, match="2 tensor ranks do not divide"):
        list_slots(skeleton, SCHEMES["int8"])
    mesh = Mesh(tensor=RankGroup(0, 2), size=2)
    load_model(tiny_checkpoint, options("int8"), mesh=mesh)  # quantized at load, it need not be


def test_a_setting_that_contradicts_the_folder_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"])
    with pytest.raises(ConfigError, match=r"'int4'.*are int8 already"):
        load_model(tmp_path / "small", options("int4"))
    load_model(tmp_path / "small", options("int8"))


def test_a_quantized_folder_is_not_quantized_again_and_nothing_is_overwritten(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"])
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize_folder(tmp_path / "small", tmp_path / "smaller", SCHEMES["int4"])
    with pytest.raises(CheckpointError, match="exists"):
        quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int4"])


def test_a_folder_of_another_format_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"])
    path = tmp_path / "small" / "quantization.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="quantize the original"):
        load_model(tmp_path / "small")


def test_weights_that_are_not_what_quantization_json_says_are_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"])
    (tmp_path / "small" / "quantization.json").unlink()
    with pytest.raises(CheckpointError, match="unknown to this model"):
        load_model(tmp_path / "small")


def test_a_full_disk_leaves_no_half_written_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def fail(tensors: dict[str, Tensor], path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"], save=fail)
    assert not (tmp_path / "small").exists()
    quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"])
    shutil.rmtree(tmp_path / "small")


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_pieces_of_a_matrix_change_nothing(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    scheme = SCHEMES[name]
    weight = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))
    packed, scale = quantize(weight, scheme)
    for row in (0, 150, 299):
        one = quantize(weight[row : row + 1], scheme)
        assert torch.equal(one[0].float(), packed[row : row + 1].float())
        assert torch.equal(one[1], scale[row : row + 1])
    before = torch.get_num_threads()
    errors = [
        quantize_folder(tiny_checkpoint, tmp_path / str(n), scheme, threads=n) for n in (1, 3)
    ]
    assert errors[0] == errors[1]
    assert torch.get_num_threads() == before
    for path in (tmp_path / "1").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_a_device_that_is_not_there_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigError, match="try cpu"):
        quantize_folder(tiny_checkpoint, tmp_path / "small", SCHEMES["int8"], device="cuda")
