"""Grouped-query self-attention over the KV cache of prompts, without a dense mask.

Queries that see the same keys are one SDPA call: the prompt is causal, `<timestep>` sees the
prompt and itself, the image sees all of it. Rows with different prompts are separate calls, so
prompts of different length need no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import RMSNorm
from model.mesh import RankGroup
from model.rope import RotaryTable
from model.sequence import AttentionSpan


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Keys (rotated and normed) and values of one layer.

    Shapes: k_BGSH, v_BGSH.
    """

    k_BGSH: Tensor
    v_BGSH: Tensor

    def concat(self, k_BGSH: Tensor, v_BGSH: Tensor) -> tuple[Tensor, Tensor]:
        """Return these keys and values followed by the given ones, for every row of those."""
        rows = k_BGSH.shape[0]
        return (
            torch.cat((self.k_BGSH.expand(rows, -1, -1, -1), k_BGSH), dim=2),
            torch.cat((self.v_BGSH.expand(rows, -1, -1, -1), v_BGSH), dim=2),
        )


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Rows of a batch with the same prompt: same positions, same visible keys.

    `past_kv` holds the prompt's keys and values, one entry a layer; it is empty for a sequence
    from its start.
    """

    rows: slice
    rope: RotaryTable
    spans: tuple[AttentionSpan, ...]
    past_kv: Sequence[LayerKV] = ()

    def to(self, device: torch.device) -> "AttentionGroup":
        """Return the same group for a layer on another device, where that layer's past is."""
        return replace(self, rope=self.rope.to(device))

    @property
    def past_length(self) -> int:
        return self.past_kv[0].k_BGSH.shape[2] if self.past_kv else 0


class SelfAttention(nn.Module):
    """Attention of one layer; with tensor parallelism a rank holds some of the key/value heads.

    `new_kv`, where given, has a list for each group, which receives the new keys and values.

    Shapes: x_BSD -> x_BSD; every row of the batch belongs to exactly one group.
    """

    def __init__(self, config: ModelConfig, layer: int, ranks: RankGroup) -> None:
        super().__init__()
        self._layer = layer
        self._ranks = ranks
        self._head_dim = config.head_dim
        self._queries_per_kv = config.num_heads // config.num_kv_heads
        width = config.num_heads * config.head_dim // ranks.size
        kv_width = config.num_kv_heads * config.head_dim // ranks.size
        self.qkv_proj = nn.Linear(config.hidden_size, width + 2 * kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.query_layernorm = self.key_layernorm = None
        if config.use_qk_norm:
            self.query_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.key_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x_BSD: Tensor,
        groups: Sequence[AttentionGroup],
        new_kv: Sequence[list[LayerKV]] | None = None,
    ) -> Tensor:
        # The checkpoint groups qkv by key/value head: its queries first, then one key, one value.
        qkv_BSGZH = self.qkv_proj(x_BSD).unflatten(
            -1, (-1, self._queries_per_kv + 2, self._head_dim)
        )
        out_BSZ = torch.cat(
            [
                self._attend(qkv_BSGZH[group.rows], group, None if new_kv is None else new_kv[i])
                for i, group in enumerate(groups)
            ]
        )
        return self._ranks.all_reduce(self.o_proj(out_BSZ))

    def _attend(
        self, qkv_BSGZH: Tensor, group: AttentionGroup, new_kv: list[LayerKV] | None
    ) -> Tensor:
        q_BSGZH, k_BSGZH, v_BSGZH = qkv_BSGZH.split([self._queries_per_kv, 1, 1], dim=3)
        v_BGSH = v_BSGZH.squeeze(3).transpose(1, 2)
        # Rotate before normalising: the checkpoint was trained in this order.
        q_BNSH = group.rope.rotate(q_BSGZH.flatten(2, 3).transpose(1, 2))
        k_BGSH = group.rope.rotate(k_BSGZH.squeeze(3).transpose(1, 2))
        if self.query_layernorm is not None and self.key_layernorm is not None:
            q_BNSH, k_BGSH = self.query_layernorm(q_BNSH), self.key_layernorm(k_BGSH)
        q_BNSH, k_BGSH = q_BNSH.to(v_BGSH.dtype), k_BGSH.to(v_BGSH.dtype)
        if new_kv is not None:
            # A copy of the values: the view would keep the queries' memory alive with them.
            new_kv.append(LayerKV(k_BGSH, v_BGSH.clone()))
        if group.past_kv:
            k_BGSH, v_BGSH = group.past_kv[self._layer].concat(k_BGSH, v_BGSH)
        spans_BNSH = [
            attend_span(q_BNSH, k_BGSH, v_BGSH, span, group.past_length) for span in group.spans
        ]
        return torch.cat(spans_BNSH, dim=2).transpose(1, 2).flatten(2)


def attend_span(
    q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, span: AttentionSpan, past_length: int
) -> Tensor:
    """Attend with the queries of one span to the keys it may see.

    Shapes: q_BNSH holds the new tokens; k_BGSH, v_BGSH the past ones and then the new ones.
    """
    stop = past_length + span.stop
    q_BNSH = q_BNSH[:, :, span.start : span.stop]
    k_BGSH, v_BGSH = k_BGSH[:, :, :stop], v_BGSH[:, :, :stop]
    if span.is_causal:
        if past_length + span.start == 0:
            return F.scaled_dot_product_attention(
                q_BNSH, k_BGSH, v_BGSH, is_causal=True, enable_gqa=True
            )
        mask_SS = torch.ones(q_BNSH.shape[2], stop, dtype=torch.bool, device=q_BNSH.device)
        mask_SS = mask_SS.tril_(stop - q_BNSH.shape[2])
        return F.scaled_dot_product_attention(
            q_BNSH, k_BGSH, v_BGSH, attn_mask=mask_SS, enable_gqa=True
        )
    # Every query sees every key, so the heads that share a key are just more queries.
    queries_per_kv = q_BNSH.shape[1] // k_BGSH.shape[1]
    folded_BGZH = q_BNSH.unflatten(1, (-1, queries_per_kv)).flatten(2, 3)
    out_BGZH = F.scaled_dot_product_attention(folded_BGZH, k_BGSH, v_BGSH)
    return out_BGZH.unflatten(2, (queries_per_kv, -1)).flatten(1, 2)
