"""Mixture of experts (MoE): a float32 top-k router, and experts run on tokens sorted by expert.

No token is dropped and nothing is padded to a capacity, so the output of a token depends on that
token alone. Over several ranks the routed experts are split by width (tensor parallel) or shared
out whole (expert parallel); the ranks' outputs are summed by one all-reduce.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MoeConfig
from model.fused import normalize_weights, swiglu, weighted_swiglu
from model.grouped import grouped_product
from model.layers import SharedExpert
from model.mesh import RankGroup

# Brings experts, by their index on this rank, onto the layer's device before they are used.
AcquireExperts = Callable[[Sequence[int]], None]


class ExpertOffload(Protocol):
    """Layers whose experts are not on the device until they are acquired."""

    @property
    def layers(self) -> Collection[int]:
        """Return the offloaded layers."""
        ...

    def acquire(self, layer: int, wanted: Sequence[int]) -> None:
        """Bring the wanted experts of a layer onto its device."""
        ...


class Router(nn.Module):
    """Choose experts and their weights for every token.

    Shapes: x_TD -> weights_TK float32 (largest first), experts_TK int64.
    """

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        # float32 whatever the other parameters are: a rounded score can flip the choice.
        self.wg = nn.Linear(hidden_size, config.num_experts, bias=False)
        self._top_k = config.experts_per_token
        self._normalize = config.normalize_weights

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        scores_TE = self.wg(x_TD.float()).softmax(dim=-1)
        weights_TK, experts_TK = scores_TE.topk(self._top_k, dim=-1)
        if self._normalize:
            weights_TK = normalize_weights(weights_TK)
        return weights_TK, experts_TK


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """The rows of the [T, K] choices, sorted by expert.

    `order` holds the rows' places in [T, K], `tokens` their tokens, `weights` their float32 weights
    and `experts` their experts, numbered from this rank's first. The rows of expert e end before
    `ends_E[e]`, int32; rows of other ranks' experts come last.
    """

    order: Tensor
    tokens: Tensor
    weights: Tensor
    experts: Tensor
    ends_E: Tensor


def sort_by_expert(
    weights_TK: Tensor, experts_TK: Tensor, first: int, num_all: int, num_local: int
) -> Routing:
    """Return the choices of all tokens sorted by expert, without a host synchronisation."""
    # Keys of one byte: a device sorts them in an eighth of the passes that int64 takes.
    expert_of_row = experts_TK.flatten().to(torch.uint8 if num_all <= 256 else torch.int32)
    if first:
        expert_of_row = (expert_of_row.to(torch.int32) - first) % num_all
    sorted_experts, order = expert_of_row.sort(stable=True)
    local_experts = torch.arange(num_local, dtype=sorted_experts.dtype, device=order.device)
    return Routing(
        order=order,
        tokens=order // experts_TK.shape[1],
        weights=weights_TK.flatten()[order],
        experts=sorted_experts,
        # bincount would wait for the device.
        ends_E=torch.searchsorted(sorted_experts, local_experts, right=True, out_int32=True),
    )


class Experts(nn.Module):
    """The routed experts of one layer, each parameter stacked over the expert axis.

    A rank holds a slice of every expert, or neighbouring whole ones; the ranks' outputs add up.
    `acquire`, where given, is called with the experts that the tokens are routed to.

    Shapes: x_TD, weights_TK, experts_TK -> x_TD.
    """

    def __init__(self, hidden_size: int, config: MoeConfig, ranks: RankGroup) -> None:
        super().__init__()
        width, count = config.expert_width, config.num_experts
        if ranks.expert_parallel:
            count //= ranks.size
        else:
            width //= ranks.size
        self.num_all = config.num_experts
        self.first = ranks.rank * count if ranks.expert_parallel else 0
        self.gate_and_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(count, hidden_size, width))

    def weight_of(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        """Return one expert's matrix as it is multiplied. Shapes: -> weight_OI."""
        weight: Tensor = getattr(self, name)[expert]
        return weight

    def forward(
        self,
        x_TD: Tensor,
        weights_TK: Tensor,
        experts_TK: Tensor,
        acquire: AcquireExperts | None = None,
    ) -> Tensor:
        num_local = self.down_proj.shape[0]
        routing = sort_by_expert(weights_TK, experts_TK, self.first, self.num_all, num_local)
        if acquire is not None:
            used = routing.experts.unique_consecutive().tolist()
            acquire([expert for expert in used if expert < num_local])
        if x_TD.device.type == "cpu":
            return self._run_each(x_TD, routing)
        return self._run_grouped(x_TD, routing)  # meta tensors too, for planning

    def _run_each(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Run expert after expert, so that its rows stay in the processor's cache.

        On CPU this reaches the speed of the bare matrix products, grouped_mm two thirds of it
        (`hyimage bench step`, 2026-11-22); and experts without tokens are never read.
        """
        out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        counts = routing.ends_E.diff(prepend=routing.ends_E.new_zeros(1)).tolist()
        num_local = sum(counts)
        weight_chunks = routing.weights[:num_local].unsqueeze(1).split(counts)
        chunks = zip(routing.tokens[:num_local].split(counts), weight_chunks, strict=True)
        for expert, (token, weight) in enumerate(chunks):
            if counts[expert]:
                x = x_TD.index_select(0, token)
                hidden = swiglu(F.linear(x, self.weight_of("gate_and_up_proj", expert, x.dtype)))
                y = F.linear(hidden, self.weight_of("down_proj", expert, x.dtype))
                out_TD.index_add_(0, token, y.float().mul_(weight))
        return out_TD.to(x_TD.dtype)

    def _run_grouped(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Run all experts in two grouped products, without a host synchronisation."""
        up_gate = self.first_product(x_TD, routing)
        # The weight of a row goes in before the second product: what follows is a plain sum.
        y_sorted = self.second_product(up_gate, routing)
        if len(routing.ends_E) < self.num_all:  # other ranks' rows hold whatever was in memory
            is_local = torch.arange(len(y_sorted), device=x_TD.device) < routing.ends_E[-1]
            y_sorted = y_sorted.where(is_local.unsqueeze(1), 0)
        position = torch.empty_like(routing.order)
        position[routing.order] = torch.arange(len(position), device=position.device)
        # Gathers each token's rows and adds them in float32, in one pass and always in one order;
        # a scatter's atomic additions would make the sum depend on theirs.
        return F.embedding_bag(position.view(len(x_TD), -1), y_sorted, mode="sum")

    def first_product(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Return [up; gate] of every row, in the order of the experts."""
        return grouped_product(x_TD[routing.tokens], self.gate_and_up_proj, routing.ends_E)

    def second_product(self, up_gate: Tensor, routing: Routing) -> Tensor:
        """Return the output of every row times its weight, in the order of the experts."""
        hidden = weighted_swiglu(up_gate, routing.weights)
        return grouped_product(hidden, self.down_proj, routing.ends_E)


class MoE(nn.Module):
    """Shared expert plus routed experts; each tensor rank holds a part of both.

    Shapes: x_BSD -> x_BSD.
    """

    def __init__(self, hidden_size: int, config: MoeConfig, ranks: RankGroup) -> None:
        super().__init__()
        self._ranks = ranks
        self.gate = Router(hidden_size, config)
        self.experts = Experts(hidden_size, config, ranks)
        self.shared_mlp = (
            SharedExpert(hidden_size, config.expert_width * config.num_shared_experts // ranks.size)
            if config.num_shared_experts
            else None
        )

    def forward(self, x_BSD: Tensor, acquire: AcquireExperts | None = None) -> Tensor:
        x_TD = x_BSD.flatten(0, 1)
        routed_TD = self.experts(x_TD, *self.gate(x_TD), acquire)
        if self.shared_mlp is not None:
            routed_TD = self.shared_mlp(x_TD) + routed_TD
        return self._ranks.all_reduce(routed_TD).view_as(x_BSD)
