"""Several processes over gloo generate the same images as one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from cache.plan import CachePlan, ForecastPlan
from model.config_file import load_config
from model.errors import ConfigError
from model.loading.build import build_skeleton, load_model
from model.loading.read_plan import plan_pieces
from model.loading.shard_plan import ShardSlice, check_divisible, plan_shard_slice
from model.loading.weight_map import list_slots
from model.mesh import Mesh, RankGroup, join_mesh, leave_mesh
from pipeline.generate import generate
from pipeline.guidance_plan import ApgPlan, GuidancePlan
from pipeline.load import load_pipeline
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from tests.conftest import FLOAT32, GOLDEN_CHECKPOINT

TRAINED_CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny"
REQUEST = ImageRequest(
    prompt="a red fox in the snow",
    negative_prompt=None,
    width_px=256,
    height_px=256,
    num_steps=3,
    guidance=5.0,
    seeds=(7,),
)
CACHE = CachePlan(start=0, end=8, tea_distance=0.5, fb_threshold_scale=9.0)
FORECAST = CachePlan(start=0, end=8, forecast=ForecastPlan(order=1, interval=2))
# The unconditional row comes after three steps, and goes before the last.
INTERVAL = GuidancePlan(interval=(0.5, 0.9), apg=ApgPlan(momentum=-0.5, eta=0.0))
REQUESTS = {
    "guided": REQUEST,
    "unguided": replace(REQUEST, guidance=1.0),
    "negative": replace(REQUEST, negative_prompt="blurry, grey"),
    "batch": replace(REQUEST, seeds=(7, 8)),
    "cached": replace(REQUEST, num_steps=8, cache=CACHE),
    "forecast": replace(REQUEST, num_steps=8, cache=FORECAST),
    "auto": replace(REQUEST, width_px=None, height_px=None),
    "two evaluations": replace(REQUEST, scheduler="Heun"),
    "stochastic": replace(REQUEST, scheduler="Euler a"),
    "interval": replace(REQUEST, num_steps=8, cache=FORECAST, guidance_plan=INTERVAL),
}


# The trained checkpoint generates 1024x1024 at least: fewer images of it.
TRAINED_REQUESTS = {
    name: replace(REQUESTS[name], width_px=side, height_px=side)
    for name, side in (("unguided", 1024), ("batch", 1024), ("cached", 1024), ("auto", None))
}


def generate_all(checkpoint: Path, mesh: Mesh) -> dict[str, list[ImageDone]]:
    torch.set_num_threads(1)
    settings = PipelineSettings(checkpoint=str(checkpoint), batch_size=2)
    pipeline = load_pipeline(settings, mesh=mesh)
    jobs = TRAINED_REQUESTS if checkpoint == TRAINED_CHECKPOINT else REQUESTS
    return {
        name: [event for event in generate(pipeline, image_request) if isinstance(event, ImageDone)]
        for name, image_request in jobs.items()
    }


def decode_all(checkpoint: Path, mesh: Mesh) -> list[Tensor]:
    """Decode latents whose rows the ranks divide, and do not divide."""
    transformer = load_model(checkpoint, FLOAT32, mesh=mesh)
    channels = transformer.config.vae.latent_channels
    shapes = [(1, channels, 8, 6), (2, channels, 5, 3), (1, channels, 4, 9)]
    latents = [torch.randn(s, generator=torch.Generator().manual_seed(1)) for s in shapes]
    with torch.inference_mode():
        return [transformer.vae.decode(latent, mesh.whole) for latent in latents]


def generate_as_rank(
    rank: int,
    cfg_size: int,
    tensor_size: int,
    expert_parallel: bool,
    checkpoint: Path,
    folder: Path,
) -> None:
    mesh = join_mesh(rank, cfg_size, tensor_size, folder / "rendezvous", "cpu", expert_parallel)
    images = generate_all(checkpoint, mesh)
    decoded = decode_all(checkpoint, mesh)
    if mesh.is_first:
        torch.save(images, folder / "images.pt")
        torch.save(decoded, folder / "decoded.pt")
    leave_mesh()


def decode_as_rank(rank: int, folder: Path) -> None:
    mesh = join_mesh(rank, 1, 3, folder / "rendezvous", "cpu")
    whole = replace(mesh, tensor=RankGroup())  # three ranks do not divide its layers
    decoded = decode_all(GOLDEN_CHECKPOINT, whole)
    if mesh.is_first:
        torch.save(decoded, folder / "decoded.pt")
    leave_mesh()


def pixels(done: ImageDone) -> npt.NDArray[np.int64]:
    return done.pixels_yx3.astype(int)


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path) -> dict[str, list[ImageDone]]:
    return generate_all(tiny_checkpoint, Mesh())


@pytest.mark.parametrize(
    ("cfg_size", "tensor_size", "expert_parallel"),
    [(1, 2, False), (2, 1, False), (2, 2, False), (1, 2, True)],
)
def test_a_mesh_generates_what_one_process_generates(
    cfg_size: int,
    tensor_size: int,
    expert_parallel: bool,
    tiny_checkpoint: Path,
    alone: dict[str, list[ImageDone]],
    tmp_path: Path,
) -> None:
    spawn(
        generate_as_rank,
        args=(cfg_size, tensor_size, expert_parallel, tiny_checkpoint, tmp_path),
        nprocs=cfg_size * tensor_size,
    )
    together = torch.load(tmp_path / "images.pt", weights_only=False)
    for name, expected in alone.items():
        assert len(together[name]) == len(expected), name
        for ours, theirs in zip(together[name], expected, strict=True):
            assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1, name
            assert ours.diagnostics == theirs.diagnostics, name
    assert together["cached"][0].diagnostics.reused_steps
    assert together["interval"][0].diagnostics.num_unguided_steps
    decoded = torch.load(tmp_path / "decoded.pt")
    for tensor, whole in zip(decoded, decode_all(tiny_checkpoint, Mesh()), strict=True):
        torch.testing.assert_close(tensor, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_mesh_generates_the_same_with_trained_weights(tmp_path: Path) -> None:
    spawn(generate_as_rank, args=(2, 2, False, TRAINED_CHECKPOINT, tmp_path), nprocs=4)
    together = torch.load(tmp_path / "images.pt", weights_only=False)
    for name, expected in generate_all(TRAINED_CHECKPOINT, Mesh()).items():
        for ours, theirs in zip(together[name], expected, strict=True):
            assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1, name
            assert ours.diagnostics == theirs.diagnostics, name


def test_a_golden_checkpoint_of_several_frames_is_decoded_in_shards(tmp_path: Path) -> None:
    """Its decoder has temporal levels: norms run over all frames and rows."""
    spawn(decode_as_rank, args=(tmp_path,), nprocs=3)
    decoded = torch.load(tmp_path / "decoded.pt")
    for ours, theirs in zip(decoded, decode_all(GOLDEN_CHECKPOINT, Mesh()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_shards_of_all_ranks_are_the_whole_once() -> None:
    for name, shape in (
        ("model.layers.0.self_attn.qkv_proj.weight", (24, 6)),
        ("model.layers.0.mlp.experts.3.gate_and_up_proj.weight", (16, 6)),
        ("model.layers.0.mlp.shared_mlp.down_proj.weight", (6, 8)),
        ("lm_head.weight", (20, 6)),
    ):
        whole = torch.arange(shape[0] * shape[1])
        seen = []
        for rank in range(2):
            shard = plan_shard_slice(name, shape, rank, 2)
            assert shard is not None
            for piece in plan_pieces(shape, shard, itemsize=2):
                read = torch.cat([whole[offset : offset + count] for offset, count in piece.runs])
                kept = read.unflatten(0, (piece.rows, -1))[:, piece.first : piece.last]
                seen += kept.flatten().tolist()
        assert sorted(seen) == whole.tolist(), name


def test_up_and_gate_are_cut_in_both_halves() -> None:
    """[up; gate] of width 8: rank 1 of 2 holds the second half of each."""
    shard = plan_shard_slice("model.layers.0.mlp.shared_mlp.gate_and_up_proj.weight", (16, 6), 1, 2)
    assert shard == ShardSlice(0, (4, 12), 4)
    assert shard.shape((16, 6)) == (8, 6)


def test_what_is_not_split_is_whole_on_every_rank() -> None:
    for name in ("model.layers.0.mlp.gate.wg.weight", "patch_embed.model.0.weight", "vae.x"):
        assert plan_shard_slice(name, (8, 8), 1, 2) is None
    assert plan_shard_slice("lm_head.weight", (21, 6), 1, 2) is None  # two ranks do not divide it


def test_ranks_that_do_not_divide_the_model_are_refused_with_what_would() -> None:
    config = load_config(GOLDEN_CHECKPOINT)
    with pytest.raises(ConfigError, match=r"num_key_value_heads is 2, which 3 .* 1 or 2"):
        check_divisible(config, 3)


def test_a_rank_holds_its_share_of_the_layers_and_checks_whole_shapes() -> None:
    config = load_config(GOLDEN_CHECKPOINT)
    whole = list_slots(build_skeleton(config, has_vision=True))
    mesh = Mesh(tensor=RankGroup(1, 2), rank=1, size=2)
    half = build_skeleton(config, has_vision=True, mesh=mesh)
    slots = list_slots(half)
    assert {n: s.shape for n, s in slots.items()} == {n: s.shape for n, s in whole.items()}
    parameters = dict(half.named_parameters())
    for name, slot in slots.items():
        assert tuple(slot.view(parameters).shape) == slot.local_shape, name
