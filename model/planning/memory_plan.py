"""Memory and time plan of a checkpoint on given devices, before anything is loaded.

Parameters are counted on the meta device; the memory of a step is measured there
(`step_memory.py`). Times come from a small roofline: the step's multiplications over the device's
peak, the bytes of its weights over its bandwidth, or the offloaded experts over the host's link,
whichever is slowest; then the all-reduces over the link, and the dequantization of weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from model.config import ModelConfig
from model.errors import ConfigError
from model.loading.device_map import layer_sizes, spread_layers
from model.loading.expert_offload import choose_offloaded, experts_of
from model.loading.expert_offloader import NUM_STAGING_BUFFERS, staging_bytes
from model.loading.options import LoadOptions
from model.mesh import Mesh, RankGroup
from model.planning.devices import Devices
from model.planning.step_memory import (
    SilentGroup,
    Workload,
    build_meta_model,
    measure_step_memory,
)
from model.quantization.scheme import SCALE_SUFFIX, Scheme
from model.transformer import HunyuanImage

# Share of a device's memory that a plan may fill: contexts, workspaces and fragments need the rest.
USABLE = 0.92


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """Bytes of one rank at its worst, and seconds of a denoising step."""

    mode: str
    num_ranks: int
    scheme: str
    parameters: int
    prefix: int
    activations: int
    cache_residuals: int
    vae: int
    step_s: float
    bytes_exchanged: int
    bytes_fetched: int

    @property
    def total(self) -> int:
        """Return the peak: a step and a decode never run at once."""
        held = self.parameters + self.prefix + self.cache_residuals
        return held + max(self.activations, self.vae)

    def fits(self, devices: Devices) -> bool:
        return self.num_ranks <= devices.count and self.total <= USABLE * devices.memory_bytes


def list_modes(config: ModelConfig, count: int) -> list[tuple[int, int]]:
    """Return (CFG parallel size, tensor parallel size) of every mesh of at most `count` devices."""
    tensor_sizes = [t for t in range(1, count + 1) if not config.num_kv_heads % t]
    modes = [(cfg, tensor) for tensor in tensor_sizes for cfg in (1, 2) if cfg * tensor <= count]
    return sorted(modes, key=lambda mode: (mode[0] * mode[1], mode[0]))


def mode_name(cfg_parallel_size: int, tensor_parallel_size: int) -> str:
    """Return the name of a mesh, as in `hyimage verify --mode`."""
    parts = [f"cfg{cfg_parallel_size}"] * (cfg_parallel_size > 1) + [
        f"tensor{tensor_parallel_size}"
    ] * (tensor_parallel_size > 1)
    return "x".join(parts) or "single"


def plan_rank(
    config: ModelConfig,
    cfg_parallel_size: int,
    tensor_parallel_size: int,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
    scheme: Scheme | None = None,
) -> RankPlan:
    """Return what the fullest rank of a mesh needs for a workload.

    With `options.weights_bytes`, experts beyond it are offloaded and copied at every step.

    Raises:
        ConfigError: weights cannot be kept to that.
    """
    mesh = Mesh(
        cfg=RankGroup(0, cfg_parallel_size),
        tensor=SilentGroup(0, tensor_parallel_size),
        size=cfg_parallel_size * tensor_parallel_size,
    )
    transformer = build_meta_model(config, mesh, options, scheme)
    offloaded = choose_offloaded(transformer, options)
    parameters = sum(p.nbytes for p in transformer.parameters())
    weights = sum(p.nbytes for p in transformer.model.layers.parameters())
    fetched, buffers = _count_offloaded(transformer, offloaded)
    memory = measure_step_memory(transformer, workload, options.dtype)
    # Two all-reduces a layer, each of every token's hidden state; a ring passes each byte twice.
    exchanged = 4 * len(config.layers) * memory.hidden if tensor_parallel_size > 1 else 0
    step_s = max(
        memory.flops / (devices.flops * devices.efficiency),
        weights / devices.bandwidth,
        fetched / devices.host_link,
    )
    step_s += exchanged * (tensor_parallel_size - 1) / tensor_parallel_size / devices.link
    if scheme is not None:  # dequantized weights are written once and read once
        step_s += 2 * _num_quantized(transformer) * options.dtype.itemsize / devices.bandwidth
    return RankPlan(
        mode=mode_name(cfg_parallel_size, tensor_parallel_size),
        num_ranks=cfg_parallel_size * tensor_parallel_size,
        scheme="none" if scheme is None else scheme.name,
        parameters=parameters - fetched + buffers,
        prefix=memory.prefix,
        activations=memory.activations,
        cache_residuals=2 * memory.hidden,
        vae=memory.vae,
        step_s=step_s,
        bytes_exchanged=exchanged,
        bytes_fetched=fetched,
    )


def plan_layers(
    config: ModelConfig,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
    scheme: Scheme | None = None,
) -> RankPlan:
    """Return what the fullest device needs when layers are spread over all of them."""
    whole = plan_rank(config, 1, 1, devices, options, workload, scheme)
    sizes, extra = layer_sizes(build_meta_model(config, Mesh(), options, scheme), options)
    held = [extra] + [0] * (devices.count - 1)
    for size, device in zip(sizes, spread_layers(sizes, extra, devices.count), strict=True):
        held[device] += size
    return replace(
        whole, mode=f"layers{devices.count}", num_ranks=devices.count, parameters=max(held)
    )


def fit_rank(
    config: ModelConfig,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
    scheme: Scheme | None = None,
) -> RankPlan | None:
    """Return the plan of one device with as many experts offloaded as necessary, or None."""
    whole = plan_rank(config, 1, 1, devices, options, workload, scheme)
    room = int(USABLE * devices.memory_bytes) - (whole.total - whole.parameters)
    try:
        return plan_rank(
            config, 1, 1, devices, replace(options, weights_bytes=room), workload, scheme
        )
    except ConfigError:
        return None


def _num_quantized(transformer: HunyuanImage) -> int:
    """Return how many weights are quantized."""
    parameters = dict(transformer.named_parameters())
    return sum(
        parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
        for name, parameter in parameters.items()
        if name + SCALE_SUFFIX in parameters
    )


def _count_offloaded(transformer: HunyuanImage, offloaded: Sequence[int]) -> tuple[int, int]:
    """Return the bytes of offloaded experts, and those of their staging buffers."""
    sizes = [staging_bytes(experts) for experts in experts_of(transformer, offloaded).values()]
    return sum(sizes), NUM_STAGING_BUFFERS * max(sizes, default=0)
