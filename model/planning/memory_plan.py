"""Memory and time plan of a checkpoint on given devices, before anything is loaded.

Parameters are counted on the meta device, and so is the memory of a step (`step_memory.py`) and its
seconds (`step_count.py`); an offload's copies run beside the kernels, so that the longer of the two
decides. Nothing is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from model.config import ModelConfig
from model.errors import ConfigError
from model.loading.device_map import layer_sizes, spread_layers
from model.loading.expert_offload import choose_offloaded, experts_of
from model.loading.expert_offloader import NUM_STAGING_BUFFERS, staging_bytes
from model.loading.options import LoadOptions
from model.mesh import SINGLE
from model.planning.devices import Devices
from model.planning.meta_step import (
    MeshShape,
    Workload,
    build_meta_mesh,
    build_meta_model,
)
from model.planning.step_count import KindCost, count_step, sum_by_kind
from model.planning.step_memory import measure_step_memory
from model.quantization import fp8_cuda
from model.quantization.scheme import Scheme
from model.transformer import HunyuanImage

# Share of a device's memory that a plan may fill: contexts, workspaces and fragments need the rest.
USABLE = 0.92


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """A denoising step of one rank as it is counted.

    `counted_s` is the time of its kernels and all-reduces, `roofline_s` a bound below it,
    `copying_s` the time of an offload's copies.
    """

    counted_s: float
    roofline_s: float
    copying_s: float
    num_kernels: int
    bytes_moved: int
    flops: int
    bytes_exchanged: int
    kinds: Mapping[str, KindCost]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """Bytes of one rank at its worst, and its denoising step.

    `reading` is what encoding input images and prefilling their prompt takes, whichever is more.
    """

    mode: str
    num_ranks: int
    scheme: str
    parameters: int
    prefix: int
    activations: int
    cache_residuals: int
    vae: int
    step: StepTime
    bytes_fetched: int
    reading: int = 0

    @property
    def step_s(self) -> float:
        """Return the seconds of a step: offloaded experts are copied while others compute."""
        return max(self.step.counted_s, self.step.copying_s)

    @property
    def roofline_s(self) -> float:
        return max(self.step.roofline_s, self.step.copying_s)

    @property
    def total(self) -> int:
        """Return the peak: reading images, a step and a decode never run at once."""
        held = self.parameters + self.prefix + self.cache_residuals
        return held + max(self.activations, self.vae, self.reading)

    def fits(self, devices: Devices) -> bool:
        return self.num_ranks <= devices.count and self.total <= USABLE * devices.memory_bytes


def list_shapes(config: ModelConfig, count: int, expert_parallel: bool = False) -> list[MeshShape]:
    """Return every mesh of at most `count` devices; with whole experts, where ranks can share."""

    def can_share(tensor: int) -> bool:
        return tensor > 1 and not any(moe.num_experts % tensor for moe in config.layers)

    return sorted(
        (
            MeshShape(cfg, tensor, expert_parallel and can_share(tensor))
            for tensor in range(1, count + 1)
            for cfg in (1, 2)
            if not config.num_kv_heads % tensor and cfg * tensor <= count
        ),
        key=lambda shape: (shape.num_ranks, shape.cfg),
    )


def plan_rank(
    config: ModelConfig,
    shape: MeshShape,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
    scheme: Scheme | None = None,
) -> RankPlan:
    """Return what the fullest rank of a mesh needs for a workload.

    With `options.weights_bytes`, experts beyond it are offloaded and copied at every step. A step
    is counted in bfloat16 whatever `options.dtype` is.

    Raises:
        ConfigError: weights cannot be kept to that.
    """
    transformer = build_meta_model(config, build_meta_mesh(shape), options, scheme)
    offloaded = choose_offloaded(transformer, options)
    parameters = sum(p.nbytes for p in transformer.parameters())
    fetched, buffers = _count_offloaded(transformer, offloaded)
    with fp8_cuda.planned_for(devices.card.capability):
        memory = measure_step_memory(transformer, workload, options.dtype)
    step = _count_time(transformer, workload, devices, fetched)
    return RankPlan(
        mode=shape.name,
        num_ranks=shape.num_ranks,
        scheme="none" if scheme is None else scheme.name,
        parameters=parameters - fetched + buffers,
        prefix=memory.prefix,
        activations=memory.activations,
        cache_residuals=2 * memory.hidden,
        vae=memory.vae,
        step=step,
        bytes_fetched=fetched,
        reading=max(memory.encode, memory.prefill),
    )


def plan_layers(
    config: ModelConfig,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
    scheme: Scheme | None = None,
) -> RankPlan:
    """Return what the fullest device needs when layers are spread over all of them."""
    whole = plan_rank(config, MeshShape(), devices, options, workload, scheme)
    sizes, extra = layer_sizes(build_meta_model(config, SINGLE, options, scheme), options)
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
    whole = plan_rank(config, MeshShape(), devices, options, workload, scheme)
    room = int(USABLE * devices.memory_bytes) - (whole.total - whole.parameters)
    try:
        return plan_rank(
            config, MeshShape(), devices, replace(options, weights_bytes=room), workload, scheme
        )
    except ConfigError:
        return None


def _count_time(
    transformer: HunyuanImage, workload: Workload, devices: Devices, fetched: int
) -> StepTime:
    card = devices.card
    counted = count_step(transformer, workload, card, devices.has_compiler)
    whole = counted.whole
    return StepTime(
        counted_s=whole.seconds,
        roofline_s=counted.roofline_s(card),
        copying_s=fetched / card.host_link,
        num_kernels=whole.num_kernels,
        bytes_moved=whole.bytes_moved,
        flops=whole.flops,
        bytes_exchanged=whole.bytes_exchanged,
        kinds=sum_by_kind(whole.kernels),
    )


def _count_offloaded(transformer: HunyuanImage, offloaded: Sequence[int]) -> tuple[int, int]:
    """Return the bytes of offloaded experts, and those of their staging buffers."""
    sizes = [staging_bytes(experts) for experts in experts_of(transformer, offloaded).values()]
    return sum(sizes), NUM_STAGING_BUFFERS * max(sizes, default=0)
