"""What a checkpoint would need on given devices, before anything is loaded.

Parameters are counted on the meta device; activations by running one denoising step and one decode
there, with the product's own code. Times come from a small roofline: the step's multiplications
over the device's peak, or the bytes of its weights over its bandwidth, whichever is slower, and the
mesh's sums over the link.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from model.attention import KeysValues, RowGroup
from model.config import ModelConfig
from model.errors import ConfigError
from model.loading.build import LoadOptions, build_skeleton, parameter_dtype
from model.loading.live_bytes import LiveBytes
from model.mesh import Group, Mesh
from model.resolution import list_offered_sizes
from model.rope import RotaryTable
from model.sequence import Span
from model.transformer import HunyuanImage

# Share of a device's memory that a plan may fill: contexts, workspaces and fragments need the rest.
USABLE = 0.92
_GPUS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)GB", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Equal devices of one machine. The defaults are an H100 SXM's data sheet; all are settable."""

    count: int
    memory_bytes: float
    flops: float = 989e12  # dense bfloat16
    bandwidth: float = 3.35e12  # bytes/s
    link: float = 450e9  # bytes/s each way: NVLink 4; PCIe 5 x16 has 64e9
    efficiency: float = 0.6  # of the peak that large matrix products reach


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The largest thing that is to fit."""

    prompt_tokens: int = 1024
    images: int = 1
    is_guided: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """Bytes of one rank at its worst, and seconds of a denoising step."""

    mode: str
    num_ranks: int
    parameters: int
    prefix: int
    activations: int
    cache_residuals: int
    vae: int
    step_s: float
    bytes_exchanged: int

    @property
    def total(self) -> int:
        """Return the peak: a step and a decode never run at once."""
        held = self.parameters + self.prefix + self.cache_residuals
        return held + max(self.activations, self.vae)

    def fits(self, devices: Devices) -> bool:
        return self.num_ranks <= devices.count and self.total <= USABLE * devices.memory_bytes


def parse_devices(text: str) -> Devices:
    """Return the devices of a text such as "4x80GB".

    Raises:
        ConfigError: it is not written like that.
    """
    match = _GPUS.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"devices {text!r} are not understood; write COUNTxMEMORY, like 4x80GB")
    return Devices(count=int(match[1]), memory_bytes=float(match[2]) * 1e9)


def list_modes(config: ModelConfig, count: int) -> list[tuple[int, int]]:
    """Return (cfg ranks, tensor ranks) of every mesh of at most `count` devices."""
    tensors = [t for t in range(1, count + 1) if not config.num_kv_heads % t]
    modes = [(cfg, tensor) for tensor in tensors for cfg in (1, 2) if cfg * tensor <= count]
    return sorted(modes, key=lambda mode: (mode[0] * mode[1], mode[0]))


def mode_name(cfg_ranks: int, tensor_ranks: int) -> str:
    """Return how `hyimage verify --mode` calls a mesh."""
    parts = [f"cfg{cfg_ranks}"] * (cfg_ranks > 1) + [f"tensor{tensor_ranks}"] * (tensor_ranks > 1)
    return "x".join(parts) or "single"


def plan_rank(
    config: ModelConfig,
    cfg_ranks: int,
    tensor_ranks: int,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
) -> RankPlan:
    """Return what the fullest rank of a mesh needs at the largest offered size."""
    mesh = Mesh(
        cfg=Group(0, cfg_ranks), tensor=_SilentGroup(0, tensor_ranks), size=cfg_ranks * tensor_ranks
    )
    transformer = _build_meta_model(config, mesh, options)
    grid = _largest_grid(config)
    branches = 2 if workload.is_guided else 1
    rows = workload.images * branches // min(cfg_ranks, branches)
    layers = [(n, p) for n, p in transformer.named_parameters() if n.startswith("model.layers")]
    with torch.inference_mode():
        past = _build_past(transformer, workload.prompt_tokens)
        groups = _build_groups(transformer, past, rows, grid)
        with (
            LiveBytes(transformer.parameters()) as live,
            _count_flops() as flops,
            _FusedAttention(),
        ):
            _run_step(transformer, groups, rows, grid)
            activations = live.peak
        latent_BCYX = torch.empty(1, config.vae.latent_channels, *grid, device="meta")
        with LiveBytes(transformer.parameters()) as live, _FusedAttention():
            transformer.vae.decode(latent_BCYX)
            vae = live.peak
    num_tokens = rows * (grid[0] * grid[1] + len(config.step_tokens))
    itemsize = options.dtype.itemsize
    # Two sums a layer, each of every token's hidden state; a ring passes each byte twice.
    exchanged = (
        4 * len(config.layers) * num_tokens * config.hidden_size * itemsize
        if tensor_ranks > 1
        else 0
    )
    weights = sum(p.nbytes for _, p in layers)
    step_s = max(
        flops.get_total_flops() / (devices.flops * devices.efficiency), weights / devices.bandwidth
    )
    return RankPlan(
        mode=mode_name(cfg_ranks, tensor_ranks),
        num_ranks=cfg_ranks * tensor_ranks,
        parameters=sum(p.nbytes for p in transformer.parameters()),
        # Each row of a picture has a prompt of its own.
        prefix=2 * sum(layer.k_BGSH.nbytes for layer in past) * min(rows, 2),
        activations=activations,
        cache_residuals=2 * num_tokens * config.hidden_size * itemsize,
        vae=vae,
        step_s=step_s + exchanged * (tensor_ranks - 1) / tensor_ranks / devices.link,
        bytes_exchanged=exchanged,
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
    """Return a counter that knows the experts' products too."""

    def grouped(x: Sequence[int], weights: Sequence[int], *_: object, **__: object) -> int:
        rows, inner, outer = x[0], x[1], weights[-1]
        return 2 * rows * inner * outer

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})


class _SilentGroup(Group):
    """A group whose other ranks are only counted: sums change nothing, gathers widen."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _build_meta_model(config: ModelConfig, mesh: Mesh, options: LoadOptions) -> HunyuanImage:
    """Return a rank's model as it is loaded for drawing, without memory."""
    transformer = build_skeleton(config, mesh=mesh)
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


def _build_past(transformer: HunyuanImage, length: int) -> tuple[KeysValues, ...]:
    config = transformer.config
    heads = config.num_kv_heads // transformer.mesh.tensor.size
    shape = (1, heads, length, config.head_dim)
    dtype = transformer.dtype
    return tuple(
        KeysValues(*(torch.empty(shape, dtype=dtype, device="meta") for _ in range(2)))
        for _ in config.layers
    )


def _build_groups(
    transformer: HunyuanImage, past: tuple[KeysValues, ...], rows: int, grid: tuple[int, int]
) -> list[RowGroup]:
    before = len(transformer.config.step_tokens)
    length = before + grid[0] * grid[1]
    table = torch.empty(length, transformer.config.head_dim, device="meta")
    spans = (
        *(Span(i, i + 1, is_causal=False) for i in range(before)),
        Span(before, length, is_causal=False),
    )
    return [
        RowGroup(rows=slice(row, row + 1), rope=RotaryTable(table, table), spans=spans, past=past)
        for row in range(rows)
    ]


def _run_step(
    transformer: HunyuanImage, groups: list[RowGroup], rows: int, grid: tuple[int, int]
) -> None:
    channels = transformer.config.vae.latent_channels
    latent_BCYX = torch.empty(1, channels, *grid, device="meta")
    time_B = torch.empty(1, device="meta")
    x_BSD = transformer.embed_step(latent_BCYX, time_B, time_B, time_B).repeat(rows, 1, 1)
    x_BSD = transformer.run_layers(x_BSD, groups)
    transformer.predict_velocity(x_BSD, time_B.repeat(rows), grid)
