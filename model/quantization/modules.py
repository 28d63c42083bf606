"""Quantized linear layers and experts. Router, norms, embeddings, head and VAE stay as they are.

Weights are dequantized just before they are multiplied: an image has thousands of tokens, so that
the products outweigh it, and one expert after the other fits in the processor's cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fused import quantize_rows, quantized_weighted_swiglu, weighted_swiglu
from model.grouped import grouped_product
from model.moe import Experts, Routing
from model.quantization import fp8_cuda
from model.quantization.scheme import SCALE_SUFFIX, Scheme, dequantize
from model.transformer import HunyuanImage


class QuantizedLinear(nn.Module):
    """A linear layer without bias whose weight is quantized.

    Shapes: x_TD -> x_TZ, the dtype of x is kept.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        super().__init__()
        add_quantized(self, "weight", linear.weight, scheme)

    def forward(self, x_TD: Tensor) -> Tensor:
        weight, scale = self.weight, self.weight_scale
        if fp8_cuda.is_usable(x_TD, weight):
            return fp8_cuda.linear(x_TD, weight, scale)
        return F.linear(x_TD, dequantize(weight, scale, x_TD.dtype))


class QuantizedExperts(Experts):
    """Routed experts whose matrices are quantized.

    Shapes: as Experts.
    """

    def __init__(self, experts: Experts, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        self.gate_and_up_proj_scale: nn.Parameter
        self.down_proj_scale: nn.Parameter
        self.num_all, self.first = experts.num_all, experts.first
        for name in ("gate_and_up_proj", "down_proj"):
            add_quantized(self, name, getattr(experts, name), scheme)

    def weight_of(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        packed, scale = getattr(self, name)[expert], getattr(self, name + SCALE_SUFFIX)[expert]
        return dequantize(packed, scale, dtype)

    def first_product(self, x_TD: Tensor, routing: Routing) -> Tensor:
        packed, scale = self.gate_and_up_proj, self.gate_and_up_proj_scale
        if fp8_cuda.is_grouped_usable(x_TD, packed):
            # Quantized once per token, before the gather, which then moves half the bytes.
            values_TD, scale_T1 = quantize_rows(x_TD)
            values, row_scale = values_TD[routing.tokens], scale_T1[routing.tokens]
            return fp8_cuda.grouped_linear(values, row_scale, packed, scale, routing.ends_E)
        return _dequantized_product(x_TD[routing.tokens], packed, scale, routing)

    def second_product(self, up_gate: Tensor, routing: Routing) -> Tensor:
        packed, scale = self.down_proj, self.down_proj_scale
        if fp8_cuda.is_grouped_usable(up_gate, packed):
            values, row_scale = quantized_weighted_swiglu(up_gate, routing.weights)
            return fp8_cuda.grouped_linear(values, row_scale, packed, scale, routing.ends_E)
        hidden = weighted_swiglu(up_gate, routing.weights)
        return _dequantized_product(hidden, packed, scale, routing)


def _dequantized_product(rows: Tensor, packed: Tensor, scale: Tensor, routing: Routing) -> Tensor:
    """Return rows times the transposed weights of their experts, dequantized.

    The few rows of a text token need a few experts: theirs alone are dequantized.
    """
    if len(rows) <= len(packed):
        experts = routing.experts.long().clamp_max(len(packed) - 1)  # other ranks' are masked later
        weights = dequantize(packed[experts], scale[experts], rows.dtype)
        return torch.bmm(rows.unsqueeze(1), weights.transpose(1, 2)).squeeze(1)
    return grouped_product(rows, dequantize(packed, scale, rows.dtype), routing.ends_E)


def add_quantized(module: nn.Module, name: str, weight: Tensor, scheme: Scheme) -> None:
    """Give a module the two parameters that replace a weight, on the weight's device, unset."""
    *before, columns = weight.shape
    groups = columns // scheme.group_of(columns)
    packed = weight.new_empty((*before, scheme.packed(columns)), dtype=scheme.dtype)
    scale = weight.new_empty((*before, groups), dtype=scheme.scale_dtype)
    setattr(module, name, nn.Parameter(packed, requires_grad=False))
    setattr(module, name + SCALE_SUFFIX, nn.Parameter(scale, requires_grad=False))


def quantize_layers(transformer: HunyuanImage, scheme: Scheme) -> None:
    """Replace the large matrices of the decoder layers by quantized ones, unset, in place."""
    for layer in transformer.layers:
        for parent in (layer.self_attn, layer.mlp.shared_mlp):
            if parent is None:
                continue
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    setattr(parent, name, QuantizedLinear(child, scheme))
        layer.mlp.experts = QuantizedExperts(layer.mlp.experts, scheme)
