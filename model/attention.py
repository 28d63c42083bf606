"""Grouped-query self-attention over the KV cache of prompts, without a dense mask.

Queries that see the same keys are one SDPA call: the prompt is causal, `<timestep>` sees the
prompt and itself, the image sees all of it. Rows with different prompts are separate calls, so
prompts of different length need no padding.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.config import ModelConfig
from model.fused import rotate_and_norm
from model.layers import RMSNorm
from model.mesh import RankGroup
from model.rope import RotaryTable
from model.sequence import AttentionSpan

FEW_QUERIES = 8


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Keys (rotated and normed) and values of one layer.

    `before`, where given, holds those of the tokens before these: a prompt that begins like another
    one refers to the other's memory. It has none before it itself.

    Shapes: k_BGSH, v_BGSH.
    """

    k_BGSH: Tensor
    v_BGSH: Tensor
    before: "LayerKV | None" = None

    @property
    def length(self) -> int:
        return self.k_BGSH.shape[2] + (self.before.length if self.before else 0)

    def first(self, length: int) -> "LayerKV":
        """Return the keys and values of the first tokens alone; nothing is copied."""
        own = length
        if self.before is not None:
            own -= self.before.length
            if own <= 0:
                return self.before.first(length)
        return replace(self, k_BGSH=self.k_BGSH[:, :, :own], v_BGSH=self.v_BGSH[:, :, :own])

    def append(self, k_BGSH: Tensor, v_BGSH: Tensor) -> "LayerKV":
        """Return these keys and values followed by new ones, what is not new shared or copied."""
        if self.before is None:
            return LayerKV(k_BGSH, v_BGSH, before=self)
        k_BGSH = torch.cat((self.k_BGSH, k_BGSH), dim=2)
        return replace(self, k_BGSH=k_BGSH, v_BGSH=torch.cat((self.v_BGSH, v_BGSH), dim=2))

    def concat(self, k_BGSH: Tensor, v_BGSH: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values followed by the given ones, for every row of those."""
        rows = k_BGSH.shape[0]
        held = (self,) if self.before is None else (self.before, self)
        return (
            torch.cat([*(kv.k_BGSH.expand(rows, -1, -1, -1) for kv in held), k_BGSH], dim=2),
            torch.cat([*(kv.v_BGSH.expand(rows, -1, -1, -1) for kv in held), v_BGSH], dim=2),
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
        return self.past_kv[0].length if self.past_kv else 0


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
        self._num_heads = config.num_heads // ranks.size
        self._queries_per_kv = config.num_heads // config.num_kv_heads
        width = config.num_heads * config.head_dim // ranks.size
        kv_width = config.num_kv_heads * config.head_dim // ranks.size
        self.qkv_proj = nn.Linear(config.hidden_size, width + 2 * kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.query_layernorm: RMSNorm | None = None
        self.key_layernorm: RMSNorm | None = None
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
        num_rows, length = x_BSD.shape[:2]
        out_BSNH = x_BSD.new_empty(num_rows, length, self._num_heads, self._head_dim)
        for i, group in enumerate(groups):
            self._attend(
                qkv_BSGZH[group.rows],
                group,
                out_BSNH[group.rows],
                None if new_kv is None else new_kv[i],
            )
        return self._ranks.all_reduce(self.o_proj(out_BSNH.flatten(2)))

    def _attend(
        self,
        qkv_BSGZH: Tensor,
        group: AttentionGroup,
        out_BSNH: Tensor,
        new_kv: list[LayerKV] | None,
    ) -> None:
        """Attend with the rows of one group; the results are written to `out_BSNH`."""
        q_BSGZH, k_BSGZH, v_BSGZH = qkv_BSGZH.split([self._queries_per_kv, 1, 1], dim=3)
        v_BGSH = v_BSGZH.squeeze(3).transpose(1, 2)
        q_BNSH = self._rotate(q_BSGZH, group.rope, self.query_layernorm)
        k_BGSH = self._rotate(k_BSGZH, group.rope, self.key_layernorm)
        if new_kv is not None:
            # A copy of the values: the view would keep the queries' memory alive with them.
            new_kv.append(LayerKV(k_BGSH, v_BGSH.clone()))
        if group.past_kv:
            k_BGSH, v_BGSH = group.past_kv[self._layer].concat(k_BGSH, v_BGSH)
        for span in group.spans:
            span_BNSH = attend_span(q_BNSH, k_BGSH, v_BGSH, span, group.past_length)
            out_BSNH[:, span.start : span.stop] = span_BNSH.transpose(1, 2)

    def _rotate(self, x_BSGZH: Tensor, rope: RotaryTable, norm: RMSNorm | None) -> Tensor:
        """Return queries or keys, rotated and normed, as a view. Shapes: x_BSGZH -> x_BNSH."""
        weight_H, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        x_BGZSH = x_BSGZH.permute(0, 2, 3, 1, 4)
        rotated_BGZSH = rotate_and_norm(x_BGZSH, rope.cos_SH, rope.signed_sin_SH, weight_H, eps)
        return rotated_BGZSH.flatten(1, 2)


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
    if q_BNSH.device.type != "cpu" and q_BNSH.dtype != torch.float32:
        with _backends_for(q_BNSH):
            return F.scaled_dot_product_attention(q_BNSH, k_BGSH, v_BGSH, enable_gqa=True)
    # Every query sees every key, so the heads that share a key are just more queries. Faster on a
    # CPU, and CUDA's attention of float32 knows no shared keys.
    queries_per_kv = q_BNSH.shape[1] // k_BGSH.shape[1]
    folded_BGZH = q_BNSH.unflatten(1, (-1, queries_per_kv)).flatten(2, 3)
    out_BGZH = F.scaled_dot_product_attention(folded_BGZH, k_BGSH, v_BGSH)
    return out_BGZH.unflatten(2, (queries_per_kv, -1)).flatten(1, 2)


def _backends_for(q_BNSH: Tensor) -> contextlib.AbstractContextManager[None]:
    """Keep spans of few queries from cuDNN, which makes a plan for each new number of keys.

    A text grows by a key with every token, and a plan takes some 20 ms of the host's time.
    Source: torch 2.13 prefers cuDNN's attention on Hopper; pytorch and vLLM issues report the time.
    """
    if q_BNSH.shape[2] > FEW_QUERIES:
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
