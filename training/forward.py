"""The training forward: a padded batch through the modules of `model/`, with gradients.

Equal to the inference path of prefill and steps, which needs no padding and keeps keys and values;
here all rows run at once, and attention is two products and a softmax, several times faster than
masked SDPA in training at these sizes.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import SelfAttention
from model.fused import rotate_and_norm, swiglu
from model.layers import RMSNorm, SharedExpert
from model.moe import MoE
from model.rope import RotaryTable, build_rotary_table
from model.sequence import ImageSequence, grid_positions
from model.transformer import DecoderLayer, HunyuanImage
from training.layout_probe import PROBED_DEPTH

MASKED = -1e9


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts of a batch, padded on the right to the longest, each before an image of one grid.

    A position is [prompt, padding, <timestep>, image tokens].
    Shapes: ids_BS int64, lengths_B int64.
    """

    ids_BS: Tensor
    lengths_B: Tensor
    grid: tuple[int, int]  # rows, columns

    @property
    def padded_length(self) -> int:
        return self.ids_BS.shape[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions and visibility, shared by all layers.

    Shapes: mask_text_B1SS is added to the scores of [prompt, padding, <timestep>] among
    themselves, one mask per row of the batch; mask_keys_B11S to those of image tokens.
    """

    rope: RotaryTable
    num_text: int
    mask_text_B1SS: Tensor
    mask_keys_B11S: Tensor


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of a batch, from which its losses are computed.

    Shapes: velocity_BCYX, features_BSD of the image tokens half-way, logits_BSV of the prompt's
    positions, balance a scalar.
    """

    velocity_BCYX: Tensor
    features_BSD: Tensor
    logits_BSV: Tensor
    balance: Tensor


def predict(
    transformer: HunyuanImage, sequences: Sequences, latent_BCYX: Tensor, timestep_B: Tensor
) -> Predictions:
    """Run a batch: velocities at the image tokens, next-token logits at the prompt."""
    layout = build_layout(transformer, sequences)
    text_BSD = transformer.model.wte(sequences.ids_BS)
    x_BSD = torch.cat((text_BSD, transformer.embed_step(latent_BCYX, timestep_B)), dim=1)
    length = sequences.padded_length
    features_BSD, balances = x_BSD, []
    probed = round(PROBED_DEPTH * len(transformer.model.layers))
    for index, module in enumerate(transformer.model.layers):
        layer = cast(DecoderLayer, module)
        attended_BSD = attend(layer.self_attn, layer.input_layernorm(x_BSD), layout)
        x_BSD, normed_BSD = layer.post_attention_layernorm(x_BSD, attended_BSD)
        experts_BSD, balance = run_experts(layer.mlp, normed_BSD)
        x_BSD = x_BSD + experts_BSD
        balances.append(balance)
        if index + 1 == probed:
            features_BSD = x_BSD[:, length + 1 :]
    return Predictions(
        velocity_BCYX=transformer.predict_velocity(x_BSD[:, length:], timestep_B, sequences.grid),
        features_BSD=features_BSD,
        logits_BSV=transformer.text_logits(x_BSD[:, :length]),
        balance=torch.stack(balances).mean(),
    )


def build_layout(transformer: HunyuanImage, sequences: Sequences) -> Layout:
    """Return positions and masks of a batch."""
    config, length = transformer.config, sequences.padded_length
    tables = [
        build_rotary_table(_positions(sequences, row), config.head_dim, config.rope_theta)
        for row in range(len(sequences.lengths_B))
    ]
    rope = RotaryTable(
        torch.stack([table.cos_SH for table in tables]).unsqueeze(1),
        torch.stack([table.signed_sin_SH for table in tables]).unsqueeze(1),
    )
    is_real_BS = torch.arange(length) < sequences.lengths_B.unsqueeze(1)
    is_seen_BS = F.pad(is_real_BS, (0, 1 + sequences.grid[0] * sequences.grid[1]), value=True)
    mask_keys_BS = torch.zeros(is_seen_BS.shape).masked_fill_(~is_seen_BS, MASKED)
    causal_SS = torch.full((length + 1, length + 1), MASKED).triu_(1)
    # Queries of padding may attend to anything; no other query attends to padding: the keys' mask
    # hides it from <timestep> too.
    mask_text_BSS = causal_SS + mask_keys_BS[:, None, : length + 1]
    return Layout(rope, length + 1, mask_text_BSS.unsqueeze(1), mask_keys_BS[:, None, None])


def _positions(sequences: Sequences, row: int) -> Tensor:
    length, padded = int(sequences.lengths_B[row]), sequences.padded_length
    height, width = sequences.grid
    sequence = ImageSequence(ids=(), prefix_length=length, grid_height=height, grid_width=width)
    positions_S2 = grid_positions(sequence, sequence.image_stop)
    padding_S2 = torch.zeros(padded - length, 2, dtype=positions_S2.dtype)
    return torch.cat((positions_S2[:length], padding_S2, positions_S2[length:]))


def attend(attention: SelfAttention, x_BSD: Tensor, layout: Layout) -> Tensor:
    """Return the output of one attention layer. Shapes: x_BSD -> x_BSD."""
    head_dim = attention.query_layernorm.weight.shape[0]  # type: ignore[union-attr]
    num_kv = (attention.qkv_proj.out_features - attention.o_proj.in_features) // (2 * head_dim)
    qkv_BSGZH = attention.qkv_proj(x_BSD).unflatten(-1, (num_kv, -1, head_dim))
    queries_per_kv = qkv_BSGZH.shape[3] - 2
    q_BSGZH, k_BSGZH, v_BSGZH = qkv_BSGZH.split([queries_per_kv, 1, 1], dim=3)
    v_BGSH = v_BSGZH.squeeze(3).transpose(1, 2)
    q_BNSH = _rotate(layout.rope, attention.query_layernorm, q_BSGZH.flatten(2, 3).transpose(1, 2))
    k_BGSH = _rotate(layout.rope, attention.key_layernorm, k_BSGZH.squeeze(3).transpose(1, 2))
    q_BGKSH = q_BNSH.unflatten(1, (num_kv, queries_per_kv)) * head_dim**-0.5
    stop = layout.num_text
    mask_text = layout.mask_text_B1SS.repeat(1, 1, queries_per_kv, 1)
    outputs = [
        _softmax(q_BGKSH[:, :, :, :stop], k_BGSH[:, :, :stop], v_BGSH[:, :, :stop], mask_text),
        _softmax(q_BGKSH[:, :, :, stop:], k_BGSH, v_BGSH, layout.mask_keys_B11S),
    ]
    out_BNSH = torch.cat(outputs, dim=3).flatten(1, 2)
    return attention.o_proj(out_BNSH.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _rotate(rope: RotaryTable, norm: RMSNorm | None, x_BNSH: Tensor) -> Tensor:
    """Return rotated and normed queries or keys, float32."""
    weight_H, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
    return rotate_and_norm(x_BNSH.float(), rope.cos_SH, rope.signed_sin_SH, weight_H, eps)


def _softmax(q_BGKSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask: Tensor) -> Tensor:
    """Attend; heads that share a key are more queries. Shapes: -> out_BGKSH."""
    shape = q_BGKSH.shape
    scores_BGZS = q_BGKSH.flatten(2, 3) @ k_BGSH.transpose(-1, -2) + mask
    return (scores_BGZS.softmax(dim=-1) @ v_BGSH).view(shape)


def run_experts(moe: MoE, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of the experts and the loss that keeps their loads even.

    Source: Fedus et al. 2021 (arXiv 2101.03961), equations 4 to 6: 1 is perfect balance.
    """
    x_TD = x_BSD.flatten(0, 1)
    gate = moe.gate
    with torch.autocast("cpu", enabled=False):  # float32, as in model/moe.py
        scores_TE = gate.wg(x_TD.float()).softmax(dim=-1)
    weights_TK, experts_TK = scores_TE.topk(gate._top_k, dim=-1)
    if gate._normalize:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(1e-8)
    num_experts, top_k = scores_TE.shape[1], experts_TK.shape[1]
    expert_of_row = experts_TK.flatten()
    order = expert_of_row.argsort(stable=True)
    counts_E = torch.bincount(expert_of_row, minlength=num_experts)
    tokens = order // top_k
    # unbind has one backward for all experts; indexing would build a whole gradient for each.
    parameters = zip(
        moe.experts.gate_and_up_proj.unbind(0), moe.experts.down_proj.unbind(0), strict=True
    )
    pieces = [
        F.linear(swiglu(F.linear(rows, first)), second)
        for rows, (first, second) in zip(
            x_TD[tokens].split(counts_E.tolist()), parameters, strict=True
        )
    ]
    weighted_TD = torch.cat(pieces) * weights_TK.flatten()[order].unsqueeze(1)
    shared_mlp = moe.shared_mlp
    out_TD = torch.zeros_like(x_TD) if shared_mlp is None else _shared(shared_mlp, x_TD)
    out_TD = out_TD.float().index_add(0, tokens, weighted_TD.float())
    shares_E = counts_E.float() / len(expert_of_row)
    balance = num_experts * (shares_E * scores_TE.mean(dim=0)).sum()
    return out_TD.view_as(x_BSD), balance


def _shared(shared_mlp: SharedExpert, x_TD: Tensor) -> Tensor:
    out_TD: Tensor = shared_mlp(x_TD)
    return out_TD
