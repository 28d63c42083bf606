"""Every way a checkpoint can be wrong stops start-up with a sentence that names file and tensor."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config_file import load_config, parse_config
from model.errors import CheckpointError, ModelError
from model.loading.build import build_skeleton, load_model
from model.loading.checkpoint import INDEX_NAME, list_shards
from model.loading.options import LoadOptions
from model.loading.weight_map import list_slots
from training.random_checkpoint import TINY_CONFIG, write_random_checkpoint

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; its folder's name has dots."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "Tiny-1.0.b"))


def edit_shard(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """Change the tensors of the first shard; return the name of its first tensor."""
    tensors = load_file(folder / SHARD)
    name: str = sorted(tensors)[0]
    edit(tensors)
    save_file(tensors, folder / SHARD)
    return name


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_parameter_equals_its_tensor_on_disk(checkpoint: Path) -> None:
    transformer = load_model(checkpoint, LoadOptions(dtype=torch.float32, skip=()))
    parameters = dict(transformer.named_parameters())
    stored = {k: v for path in checkpoint.glob("*.safetensors") for k, v in load_file(path).items()}
    targets = list_slots(transformer)
    assert stored.keys() == targets.keys()
    for name, target in targets.items():
        assert torch.equal(target.view(parameters), stored[name].float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_come_in_the_dtype_asked_for_but_the_router_stays_float32(
    checkpoint: Path, dtype: torch.dtype
) -> None:
    transformer = load_model(checkpoint, LoadOptions(dtype=dtype, vae_dtype=dtype))
    for name, parameter in transformer.named_parameters():
        assert parameter.dtype == (torch.float32 if ".gate.wg." in name else dtype), name


def test_a_single_file_without_index_is_a_checkpoint_too(checkpoint: Path) -> None:
    shards = sorted(checkpoint.glob("*.safetensors"))
    merged = {k: v for path in shards for k, v in load_file(path).items()}
    for path in (*shards, checkpoint / INDEX_NAME):
        path.unlink()
    save_file(merged, checkpoint / "model.safetensors")
    load_model(checkpoint)


def test_a_truncated_shard_is_named(checkpoint: Path) -> None:
    size = (checkpoint / SHARD).stat().st_size
    os.truncate(checkpoint / SHARD, size - 100)
    message = refusal(checkpoint)
    assert SHARD in message
    assert "truncated" in message


@pytest.mark.parametrize("size", [0, 5, 200])
def test_a_shard_cut_inside_its_header_is_named(checkpoint: Path, size: int) -> None:
    os.truncate(checkpoint / SHARD, size)
    assert SHARD in refusal(checkpoint)


@pytest.mark.parametrize(
    "junk",
    [b"\xff" * 8, struct.pack("<Q", 2**40), struct.pack("<Q", 40), b"<html>no such file</html>"],
)
def test_a_damaged_header_is_named(checkpoint: Path, junk: bytes) -> None:
    with (checkpoint / SHARD).open("r+b") as file:
        file.write(junk)
    assert SHARD in refusal(checkpoint)


def test_a_header_whose_offsets_contradict_its_shapes_names_the_tensor(checkpoint: Path) -> None:
    raw = (checkpoint / SHARD).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"] = [7, 7]
    text = json.dumps(header).encode()
    (checkpoint / SHARD).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    assert name in refusal(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    (checkpoint / SHARD).unlink()
    assert SHARD in refusal(checkpoint)


def test_a_tensor_missing_from_its_shard_is_named(checkpoint: Path) -> None:
    name = edit_shard(checkpoint, lambda tensors: tensors.pop(sorted(tensors)[0]))
    message = refusal(checkpoint)
    assert name in message
    assert SHARD in message


def test_an_extra_tensor_in_a_shard_is_named(checkpoint: Path) -> None:
    edit_shard(checkpoint, lambda tensors: tensors.update(surprise=torch.ones(2)))
    assert "surprise" in refusal(checkpoint)


def test_a_misshapen_tensor_is_named_with_both_shapes(checkpoint: Path) -> None:
    name = edit_shard(
        checkpoint, lambda tensors: tensors.update({sorted(tensors)[0]: torch.ones(3, 5)})
    )
    message = refusal(checkpoint)
    assert name in message
    assert "[3, 5]" in message


def test_values_that_are_not_finite_are_named(checkpoint: Path) -> None:
    name = "model.ln_f.weight"
    for shard in checkpoint.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            tensors[name][0] = float("nan")
            save_file(tensors, shard)
    assert name in refusal(checkpoint)


def test_a_tensor_missing_from_the_index_is_named(checkpoint: Path) -> None:
    index = json.loads((checkpoint / INDEX_NAME).read_text())
    del index["weight_map"]["lm_head.weight"]
    (checkpoint / INDEX_NAME).write_text(json.dumps(index))
    message = refusal(checkpoint)
    assert "lm_head.weight" in message
    assert INDEX_NAME in message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b"}}']
)
def test_an_unreadable_index_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / INDEX_NAME).write_text(text)
    assert INDEX_NAME in refusal(checkpoint)


def test_a_config_for_another_width_names_the_first_tensor_at_fault(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_experts": 4}))
    assert "experts" in refusal(checkpoint)


def test_the_real_checkpoint_has_5161_tensors_without_any_memory() -> None:
    golden = Path(__file__).parents[1] / "golden"
    fields = json.loads((golden / "real_config_distil.json").read_text())
    fields.pop("cfg_distilled")
    fields.pop("use_meanflow")
    skeleton = build_skeleton(parse_config(fields))
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert len(list_slots(skeleton)) == 5161
    assert round(sum(p.numel() for p in skeleton.parameters()) / 1e9, 1) == 82.6


MEASURE = """
import sys, torch
from pathlib import Path
from model.loading.build import LoadOptions, load_model
def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(field))
load_model(Path(sys.argv[1]))  # imports, thread pools
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = load_model(Path(sys.argv[2]), LoadOptions(dtype=getattr(torch, sys.argv[3])))
print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_peaks_at_the_parameters_and_two_of_the_largest_tensors(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    big = {
        **TINY_CONFIG,
        "hidden_size": 512,
        "moe_intermediate_size": 1024,
        "patch_embed_hidden_dim": 256,
    }
    big["vit_aligner"] = {**TINY_CONFIG["vit_aligner"], "n_embed": 512}
    write_random_checkpoint(tmp_path / "big", big, num_shards=3)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tiny_checkpoint), str(tmp_path / "big"), dtype],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    peak, parameters = map(int, done.stdout.split())
    skeleton = build_skeleton(load_config(tmp_path / "big"))
    largest = max(torch.Size(t.shape).numel() * 4 for t in list_slots(skeleton).values())
    slack = 8 * 2**20  # the allocator's own rounding and the parsed headers
    assert parameters > 50 * 2**20
    assert peak <= parameters + 2 * largest + slack


def test_errors_of_the_folder_itself_are_plain(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a folder"):
        list_shards(tmp_path / "nowhere")
