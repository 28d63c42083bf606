"""Mixture of experts (MoE): a float32 top-k router, and experts run on tokens sorted by expert.

No token is dropped and nothing is padded to a capacity, so the output of a token depends on that
token alone. Over several ranks the routed experts are split by width (tensor parallel) or shared
out whole (expert parallel); the ranks' outputs are summed by one all-reduce.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MoeConfig
from model.layers import SharedExpert, swiglu
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
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(1e-8)
        return weights_TK, experts_TK


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

    def weights_of_all(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return the matrices of all experts as they are multiplied. Shapes: -> weight_EOI."""
        weight: Tensor = getattr(self, name)
        return weight

    def forward(
        self,
        x_TD: Tensor,
        weights_TK: Tensor,
        experts_TK: Tensor,
        acquire: AcquireExperts | None = None,
    ) -> Tensor:
        top_k = experts_TK.shape[1]
        # This rank's experts are numbered from 0; rows of other ranks' experts come after them.
        expert_of_row = (experts_TK.flatten() - self.first) % self.num_all
        # Rows of the [T, K] choices, by expert. bincount would wait for the device.
        sorted_experts, order = expert_of_row.sort(stable=True)
        local_experts = torch.arange(self.down_proj.shape[0], device=x_TD.device)
        ends_E = torch.searchsorted(sorted_experts, local_experts, right=True)
        tokens = order // top_k
        if acquire is not None:
            used = sorted_experts.unique_consecutive().tolist()
            acquire([expert for expert in used if expert < len(local_experts)])
        if x_TD.device.type != "cpu":  # meta tensors, for planning, take the path of CUDA
            return self._run_grouped(x_TD, weights_TK, order, tokens, ends_E)
        return self._run_each(x_TD, weights_TK.flatten()[order], tokens, ends_E)

    def _run_each(self, x_TD: Tensor, weights: Tensor, tokens: Tensor, ends_E: Tensor) -> Tensor:
        """Run expert after expert, so that its rows stay in the processor's cache.

        On CPU this reaches the speed of the bare matrix products, grouped_mm two thirds of it
        (`hyimage bench step`, 2026-11-22); and experts without tokens are never read.
        """
        out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        counts = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
        num_local = sum(counts)
        weight_chunks = weights[:num_local].unsqueeze(1).split(counts)
        chunks = zip(tokens[:num_local].split(counts), weight_chunks, strict=True)
        for expert, (token, weight) in enumerate(chunks):
            if counts[expert]:
                x = x_TD.index_select(0, token)
                hidden = swiglu(F.linear(x, self.weight_of("gate_and_up_proj", expert, x.dtype)))
                y = F.linear(hidden, self.weight_of("down_proj", expert, x.dtype))
                out_TD.index_add_(0, token, y.float().mul_(weight))
        return out_TD.to(x_TD.dtype)

    def _run_grouped(
        self, x_TD: Tensor, weights_TK: Tensor, order: Tensor, tokens: Tensor, ends_E: Tensor
    ) -> Tensor:
        """Run all experts in two grouped products, without a host synchronisation."""
        ends_E = ends_E.to(torch.int32)
        x_sorted = x_TD[tokens]
        up_EDZ = self.weights_of_all("gate_and_up_proj", x_TD.dtype).transpose(1, 2)
        hidden = swiglu(F.grouped_mm(x_sorted, up_EDZ, offs=ends_E))
        del up_EDZ  # dequantized weights are large; the next ones may reuse their memory
        down_EFD = self.weights_of_all("down_proj", x_TD.dtype).transpose(1, 2)
        y_sorted = F.grouped_mm(hidden, down_EFD, offs=ends_E)
        if len(ends_E) < self.num_all:  # rows of other ranks' experts hold whatever was there
            is_local = torch.arange(len(order), device=order.device) < ends_E[-1]
            y_sorted = y_sorted.where(is_local.unsqueeze(1), 0)
        # Gather instead of scatter-add: atomics would make the sum depend on their order.
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)
        out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for k, rows in enumerate(position.view_as(weights_TK).unbind(1)):
            out_TD.addcmul_(y_sorted[rows].float(), weights_TK[:, k : k + 1])
        return out_TD.to(x_TD.dtype)


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
