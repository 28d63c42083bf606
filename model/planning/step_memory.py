"""Memory of a denoising step and a decode beside the weights, measured on the meta device.

Both are run there with the product's own code, so that no formula can fall behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from model.attention import AttentionGroup, LayerKV
from model.config import ModelConfig
from model.loading.build import build_skeleton
from model.loading.options import LoadOptions, parameter_dtype
from model.mesh import Mesh, RankGroup
from model.planning.live_bytes import LiveBytes
from model.quantization.scheme import Scheme
from model.resolution import list_offered_sizes
from model.rope import RotaryTable
from model.sequence import AttentionSpan
from model.transformer import HunyuanImage


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The largest batch that is to fit. `grid` is (Y, X), by default the largest offered size's."""

    prompt_tokens: int = 1024
    images: int = 1
    is_guided: bool = True
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes of the prompts, of a step and of a decode at their worst, and a step's operations.

    `hidden` is the size of all hidden states at one place between two layers.
    """

    prefix: int
    activations: int
    vae: int
    hidden: int
    flops: float


def measure_step_memory(
    transformer: HunyuanImage, workload: Workload, dtype: torch.dtype
) -> StepMemory:
    """Return what a rank's meta model needs beside its weights for a workload.

    Its layers are run in bfloat16, the one dtype of a GPU's grouped products; other dtypes need
    as many values of another size. The model's parameters are bfloat16 afterwards.
    """
    config = transformer.config
    for name, parameter in transformer.named_parameters():
        is_kept = name.startswith("vae.") or name.endswith("mlp.gate.wg.weight")
        if parameter.dtype == dtype and not is_kept:
            parameter.data = parameter.data.to(torch.bfloat16)
    grid = workload.grid or _largest_grid(config)
    branches = 2 if workload.is_guided else 1
    rows = workload.images * branches // min(transformer.mesh.cfg.size, branches)
    with torch.inference_mode():
        past_kv = _build_past(transformer, workload.prompt_tokens)
        groups = _build_groups(transformer, past_kv, rows, grid)
        with (
            LiveBytes(transformer.parameters()) as live,
            _count_flops() as flops,
            _FusedAttention(),
        ):
            _run_step(transformer, groups, rows, grid)
            activations = live.peak
        latent_BCYX = torch.empty(1, config.vae.latent_channels, *grid, device="meta")
        with LiveBytes(transformer.parameters()) as live, _FusedAttention():
            transformer.vae.decode(latent_BCYX, SilentGroup(0, transformer.mesh.size))
            vae = live.peak
    num_tokens = rows * (grid[0] * grid[1] + len(config.step_tokens))
    wider = dtype.itemsize / torch.bfloat16.itemsize
    # Each row of an image has a prompt of its own.
    prefix = 2 * sum(layer.k_BGSH.nbytes for layer in past_kv) * min(rows, 2)
    return StepMemory(
        prefix=int(prefix * wider),
        activations=int(activations * wider),
        vae=vae,
        hidden=num_tokens * config.hidden_size * dtype.itemsize,
        flops=float(flops.get_total_flops()),
    )


class _FusedAttention(TorchFunctionMode):
    """Runs attention as the fused kernel does; alone, meta tensors go the long way, with scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _count_flops() -> FlopCounterMode:
    """Return a counter that includes the experts' grouped products."""

    def grouped(x: Sequence[int], weights: Sequence[int], *_: object, **__: object) -> int:
        rows, inner, outer = x[0], x[1], weights[-1]
        return 2 * rows * inner * outer

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})


class SilentGroup(RankGroup):
    """A group without communication: sums change nothing, gathers repeat this rank's tensor."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat([x] * self.size, dim=dim)


def build_meta_model(
    config: ModelConfig, mesh: Mesh, options: LoadOptions, scheme: Scheme | None
) -> HunyuanImage:
    """Return a rank's model on the meta device, as it is loaded to generate images."""
    transformer = build_skeleton(config, mesh=mesh, scheme=scheme)
    transformer.vision_aligner = None  # type: ignore[assignment]
    transformer.vae.encoder = None  # type: ignore[assignment]
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, parameter, options))
    return transformer


def _largest_grid(config: ModelConfig) -> tuple[int, int]:
    sizes = list_offered_sizes(config.image_base_size)
    largest = max(sizes, key=lambda size: size.width_px * size.height_px)
    stride = config.pixels_per_token
    return largest.height_px // stride, largest.width_px // stride


def _build_past(transformer: HunyuanImage, length: int) -> tuple[LayerKV, ...]:
    config = transformer.config
    heads = config.num_kv_heads // transformer.mesh.tensor.size
    shape = (1, heads, length, config.head_dim)
    dtype = transformer.dtype
    return tuple(
        LayerKV(*(torch.empty(shape, dtype=dtype, device="meta") for _ in range(2)))
        for _ in config.layers
    )


def _build_groups(
    transformer: HunyuanImage, past_kv: tuple[LayerKV, ...], rows: int, grid: tuple[int, int]
) -> list[AttentionGroup]:
    before = len(transformer.config.step_tokens)
    length = before + grid[0] * grid[1]
    table = torch.empty(length, transformer.config.head_dim, device="meta")
    spans = (
        *(AttentionSpan(i, i + 1, is_causal=False) for i in range(before)),
        AttentionSpan(before, length, is_causal=False),
    )
    return [
        AttentionGroup(
            rows=slice(row, row + 1), rope=RotaryTable(table, table), spans=spans, past_kv=past_kv
        )
        for row in range(rows)
    ]


def _run_step(
    transformer: HunyuanImage, groups: list[AttentionGroup], rows: int, grid: tuple[int, int]
) -> None:
    channels = transformer.config.vae.latent_channels
    latent_BCYX = torch.empty(1, channels, *grid, device="meta")
    time_B = torch.empty(1, device="meta")
    x_BSD = transformer.embed_step(latent_BCYX, time_B, time_B, time_B).repeat(rows, 1, 1)
    x_BSD = transformer.run_layers(x_BSD, groups)
    transformer.predict_velocity(x_BSD, time_B.repeat(rows), grid)
