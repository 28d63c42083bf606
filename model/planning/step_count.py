"""What a rank's denoising step costs on a card: counted per part and per kind of operation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from model.config import ModelConfig, MoeConfig
from model.loading.options import LoadOptions
from model.mesh import Mesh
from model.planning.cards import Card
from model.planning.meta_step import MetaStep, Workload, build_meta_model, in_bfloat16
from model.planning.step_cost import Kernel, StepCost, count_cost
from model.quantization import fp8_cuda
from model.quantization.scheme import Scheme
from model.transformer import HunyuanImage

# Operations by kind; what is in no list is a copy or an elementwise operation.
_KINDS = {
    "linear products": ("mm", "addmm", "bmm", "_scaled_mm"),
    "expert products": ("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"),
    "attention": ("attention",),
    "convolutions": ("convolution",),
    "all-reduce, all-gather": ("all_reduce", "all_gather"),
    "gather of rows": ("index", "index_select", "embedding"),
    "sum of experts": ("_embedding_bag_forward_only", "_embedding_bag"),
    "norms, rotation": ("rms_norm", "add_rms_norm", "rotate_and_norm", "native_group_norm"),
    "SwiGLU, rounding": (
        "swiglu", "weighted_swiglu", "quantize_rows", "quantized_weighted_swiglu", "silu",
    ),
    "dequantization": ("dequantize",),
    "routing": (
        "topk", "sort", "_softmax", "searchsorted", "normalize_weights", "floor_divide",
    ),
}  # fmt: skip
OTHER = "copies, additions"
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
KINDS = (*_KINDS, OTHER)


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedStep:
    """The operations of a step's three parts, and the bytes of the layers' weights."""

    embed: StepCost
    layers: StepCost
    head: StepCost
    weight_bytes: int

    @property
    def whole(self) -> StepCost:
        return StepCost([*self.embed.kernels, *self.layers.kernels, *self.head.kernels])

    def roofline_s(self, card: Card) -> float:
        """Return a bound that no kernel can pass: the longer of multiplying and reading weights.

        Both at the data sheet's peaks; nothing is between the products, nothing is exchanged.
        """
        return max(self.whole.least_s, self.weight_bytes / card.peak_bandwidth)


@dataclass(frozen=True, kw_only=True, slots=True)
class KindCost:
    """All operations of one kind in a step."""

    seconds: float
    num_kernels: int
    bytes_moved: int
    flops: int


def count_step(
    transformer: HunyuanImage, workload: Workload, card: Card, is_compiled: bool = True
) -> CountedStep:
    """Return what a step of a rank's meta model costs on a card, without an offload's copies.

    The model's layers are in bfloat16. The guidance and the solver, a few dozen short kernels on
    a latent, are not in it. Of equal layers one is run, and counts for all.
    """
    ranks = transformer.mesh.tensor
    share = 1 / ranks.size if ranks.expert_parallel else 1.0
    counting = partial(count_cost, card, share, is_compiled)
    # Not inference mode, in which composite operations are not taken apart into their kernels.
    with torch.no_grad(), fp8_cuda.planned_for(card.capability):
        step = MetaStep(transformer, workload)
        with counting() as embed:
            x_BSD = step.embed()
        layers = StepCost()
        equal_layers: dict[MoeConfig, StepCost] = {}
        for index, moe in enumerate(transformer.config.layers):
            if moe not in equal_layers:
                with counting() as equal_layers[moe]:
                    step.run_layers(x_BSD, index, index + 1)
            layers.kernels += equal_layers[moe].kernels
        with counting() as head:
            step.predict(x_BSD)
    weights = sum(p.nbytes for p in transformer.model.layers.parameters())
    return CountedStep(embed=embed, layers=layers, head=head, weight_bytes=weights)


def count_mode(
    config: ModelConfig,
    mesh: Mesh,
    workload: Workload,
    card: Card,
    scheme: Scheme | None = None,
    is_compiled: bool = True,
) -> CountedStep:
    """Return what a step costs a rank of a mesh that has bfloat16 or quantized weights."""
    options = LoadOptions(dtype=torch.bfloat16, vae_dtype=torch.bfloat16)
    transformer = build_meta_model(config, mesh, options, scheme)
    in_bfloat16(transformer, options.dtype)
    return count_step(transformer, workload, card, is_compiled)


def sum_by_kind(kernels: Iterable[Kernel]) -> Mapping[str, KindCost]:
    """Return the costs by kind of operation, in the order of KINDS, of kinds that occur."""
    sorted_out: dict[str, list[Kernel]] = {kind: [] for kind in KINDS}
    for kernel in kernels:
        sorted_out[_KIND_OF.get(kernel.name, OTHER)].append(kernel)
    return {
        kind: KindCost(
            seconds=sum(kernel.seconds for kernel in members),
            num_kernels=sum(kernel.launches for kernel in members),
            bytes_moved=sum(kernel.bytes_moved for kernel in members),
            flops=sum(kernel.flops for kernel in members),
        )
        for kind, members in sorted_out.items()
        if members
    }
