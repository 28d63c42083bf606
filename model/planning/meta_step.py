"""A denoising step on the meta device: a rank's model, its inputs, and the run."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from model.attention import AttentionGroup, LayerKV
from model.config import ModelConfig
from model.image_block import count_block_tokens
from model.loading.build import build_skeleton
from model.loading.options import LoadOptions, parameter_dtype
from model.mesh import Mesh, RankGroup
from model.quantization.scheme import Scheme
from model.resolution import Size, list_offered_sizes, list_sizes
from model.rope import RotaryTable
from model.sequence import AttentionSpan
from model.transformer import HunyuanImage


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The largest batch that is to fit. `grid` is (Y, X), by default the largest offered size's.

    `input_images` of the largest size stand in each prompt, beside its `prompt_tokens`.
    """

    prompt_tokens: int = 1024
    images: int = 1
    is_guided: bool = True
    grid: tuple[int, int] | None = None
    input_images: int = 0

    def past_tokens(self, config: ModelConfig) -> int:
        """Return the tokens before a generated image, in one row."""
        return self.prompt_tokens + self.input_images * count_input_tokens(config)


def silent_all_reduce(x: Tensor, size: int) -> Tensor:
    """Return x, as if all ranks' sum were in it; a torch function mode sees the call."""
    if has_torch_function((x,)):
        summed: Tensor = handle_torch_function(silent_all_reduce, (x,), x, size)
        return summed
    return x


def silent_all_gather(x: Tensor, size: int, dim: int) -> Tensor:
    """Return x as often as there are ranks; a torch function mode sees the call."""
    if has_torch_function((x,)):
        gathered: Tensor = handle_torch_function(silent_all_gather, (x,), x, size, dim)
        return gathered
    return torch.cat([x] * size, dim=dim)


class SilentGroup(RankGroup):
    """A group without communication: sums change nothing, gathers repeat this rank's tensor."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return silent_all_reduce(x, self.size) if self.size > 1 else x

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return silent_all_gather(x, self.size, dim) if self.size > 1 else x


@dataclass(frozen=True, slots=True)
class MeshShape:
    """The sizes of a mesh, and whether its tensor ranks hold whole experts."""

    cfg: int = 1
    tensor: int = 1
    expert_parallel: bool = False

    @property
    def num_ranks(self) -> int:
        return self.cfg * self.tensor

    @property
    def name(self) -> str:
        """Return the mode's name, as in `hyimage verify --mode`."""
        parts = [f"cfg{self.cfg}"] * (self.cfg > 1) + [f"tensor{self.tensor}"] * (self.tensor > 1)
        return ("x".join(parts) or "single") + "-expert" * self.expert_parallel


def build_meta_mesh(shape: MeshShape) -> Mesh:
    """Return the mesh of a first rank that runs alone."""
    return Mesh(
        cfg=RankGroup(0, shape.cfg),
        tensor=SilentGroup(0, shape.tensor, None, shape.expert_parallel),
        size=shape.num_ranks,
    )


def build_meta_model(
    config: ModelConfig, mesh: Mesh, options: LoadOptions, scheme: Scheme | None
) -> HunyuanImage:
    """Return a rank's model on the meta device, as the options load it."""
    has_vision = "vision_model" not in options.skip
    transformer = build_skeleton(config, has_vision=has_vision, mesh=mesh, scheme=scheme)
    for part in options.skip:
        parent, _, child = part.rpartition(".")
        setattr(transformer.get_submodule(parent), child, None)
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, parameter, options))
    return transformer


def in_bfloat16(transformer: HunyuanImage, dtype: torch.dtype) -> None:
    """Set the parameters of a dtype to bfloat16, the one dtype of a GPU's grouped products."""
    for name, parameter in transformer.named_parameters():
        is_kept = name.startswith("vae.") or name.endswith("mlp.gate.wg.weight")
        if parameter.dtype == dtype and not is_kept:
            parameter.data = parameter.data.to(torch.bfloat16)


class MetaStep:
    """One denoising step of a rank's meta model: embedding, layers and head, run apart."""

    def __init__(self, transformer: HunyuanImage, workload: Workload) -> None:
        config = transformer.config
        self.transformer = transformer
        self.grid = workload.grid or _largest_grid(config)
        branches = 2 if workload.is_guided else 1
        self.rows = workload.images * branches // min(transformer.mesh.cfg.size, branches)
        self.num_tokens = self.rows * (self.grid[0] * self.grid[1] + len(config.step_tokens))
        self.past_kv = _build_past(transformer, workload.past_tokens(config))
        self.groups = _build_groups(transformer, self.past_kv, self.rows, self.grid)
        channels = config.vae.latent_channels
        self.latent_BCYX = torch.empty(1, channels, *self.grid, device="meta")
        self._time_B = torch.empty(1, device="meta")

    def run(self) -> None:
        """Run the whole step."""
        self.predict(self.run_layers(self.embed()))

    def embed(self) -> Tensor:
        """Return the tokens of all rows. Shapes: -> x_BSD."""
        time_B = self._time_B
        x_BSD = self.transformer.embed_step(self.latent_BCYX, time_B, time_B, time_B)
        return x_BSD.repeat(self.rows, 1, 1)

    def run_layers(self, x_BSD: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the output of the layers [start, stop). Shapes: x_BSD -> x_BSD."""
        return self.transformer.run_layers(x_BSD, self.groups, start, stop)

    def predict(self, x_BSD: Tensor) -> Tensor:
        """Return the velocity of all rows. Shapes: x_BSD -> velocity_BCYX."""
        time_B = self._time_B.repeat(self.rows)
        return self.transformer.predict_velocity(x_BSD, time_B, self.grid)


def count_input_tokens(config: ModelConfig) -> int:
    """Return the tokens of an input image of the largest trained size, `<boi>` to `<eoi>`."""
    size, stride = largest_input_size(config), config.pixels_per_token
    return count_block_tokens(size.width_px * size.height_px // stride**2, config.max_patches)


def largest_input_size(config: ModelConfig) -> Size:
    """Return the trained size of an input image that has the most pixels."""
    sizes = list_sizes(config.image_base_size)
    return max(sizes, key=lambda size: size.width_px * size.height_px)


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
        LayerKV(
            torch.empty(shape, dtype=dtype, device="meta"),
            torch.empty(shape, dtype=dtype, device="meta"),
        )
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
