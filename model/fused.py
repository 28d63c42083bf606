"""Fused kernels: small pure functions between the matrix products.

Each reads its arguments once and writes its results once. Eagerly, on a CPU, it is a handful of
operations; `enable_compilation` makes torch.compile turn each into one kernel on CUDA. The eager
function is the reference, and tests compare the two.

Calls follow torch's `__torch_function__` protocol, so that a mode can see a fused kernel as one
operation: `model/planning/step_cost.py` counts them like that.
"""

import logging
import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

RECOMPILE_LIMIT = 128

_lock = threading.Lock()
_is_compiling = False


class FusedKernel(Generic[P, R]):
    """A pure function of tensors that runs as one kernel where compilation is enabled."""

    def __init__(self, eager: Callable[P, R]) -> None:
        self.eager = eager
        self.name = eager.__name__
        self.__doc__ = eager.__doc__
        self._compiled: Callable[P, R] | None = None
        self._has_failed = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if has_torch_function(tensors):
            result: R = handle_torch_function(self, tensors, *args, **kwargs)
            return result
        if _is_compiling and tensors[0].is_cuda and not self._has_failed:
            return self._run_compiled(*args, **kwargs)
        return self.eager(*args, **kwargs)

    def _run_compiled(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the compiled function; where it cannot be compiled, the eager one from now on."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            return self.compiled()(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit):
            self._has_failed = True
            log.exception("%s could not be compiled; it runs eagerly, which is slower", self.name)
            return self.eager(*args, **kwargs)

    def compiled(self) -> Callable[P, R]:
        """Return the compiled function: one graph for all numbers of tokens."""
        with _lock:
            if self._compiled is None:
                # A graph for each device, dtype, and for counts of 1 beside all others: a text's
                # token, a lone row. torch's limit of 8 ends the process's use of the function.
                torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
                self._compiled = torch.compile(self.eager, dynamic=True, fullgraph=True)
            return self._compiled


def enable_compilation(is_enabled: bool = True) -> None:
    """Compile the fused kernels on CUDA from now on, each at its first call."""
    global _is_compiling
    _is_compiling = is_enabled


@FusedKernel
def rms_norm(x_BSZ: Tensor, weight_Z: Tensor, eps: float) -> Tensor:
    """Return the root-mean-square norm, statistics in float32. Shapes: -> x_BSZ, dtype of x."""
    normed_BSZ = F.rms_norm(x_BSZ.float(), weight_Z.shape, eps=eps)
    return normed_BSZ.to(x_BSZ.dtype) * weight_Z.to(x_BSZ.dtype)


@FusedKernel
def add_rms_norm(
    x_BSD: Tensor, added_BSD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return a sum and its root-mean-square norm. Shapes: -> x_BSD, normed_BSD."""
    x_BSD = x_BSD + added_BSD
    normed_BSD = F.rms_norm(x_BSD.float(), weight_D.shape, eps=eps)
    return x_BSD, normed_BSD.to(x_BSD.dtype) * weight_D.to(x_BSD.dtype)


@FusedKernel
def rotate_and_norm(
    x_ZSH: Tensor, cos_SH: Tensor, sin_SH: Tensor, weight_H: Tensor | None, eps: float
) -> Tensor:
    """Return rotated queries or keys, normed if there is a weight. Any leading axes.

    Shapes: -> x_ZSH, dtype of x.

    `sin_SH` has the signs of the rotation: its first half is negative.
    Rotate before normalising: the checkpoint was trained in this order. Both are done in float32.
    """
    wide_ZSH = x_ZSH.float()
    swapped_ZSH = wide_ZSH.roll(wide_ZSH.shape[-1] // 2, dims=-1)
    wide_ZSH = torch.addcmul(wide_ZSH * cos_SH, swapped_ZSH, sin_SH)
    if weight_H is not None:
        wide_ZSH = F.rms_norm(wide_ZSH, weight_H.shape, eps=eps) * weight_H.float()
    return wide_ZSH.to(x_ZSH.dtype)


@FusedKernel
def normalize_weights(weights_TK: Tensor) -> Tensor:
    """Return the weights of each token's experts over their sum. Shapes: -> weights_TK."""
    return weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(1e-8)


@FusedKernel
def swiglu(up_gate_TZ: Tensor) -> Tensor:
    """Return up * silu(gate), halving the last axis.

    The checkpoint stores [up; gate]. The usual fused kernels assume the opposite order.
    """
    up_TF, gate_TF = _halves(up_gate_TZ)
    return F.silu(gate_TF) * up_TF


@FusedKernel
def weighted_swiglu(up_gate_TZ: Tensor, weight_T: Tensor) -> Tensor:
    """Return swiglu times a float32 weight for each row: the weight of a token's expert.

    Before the second product instead of after it: what follows is then a plain sum.
    """
    up_TF, gate_TF = _halves(up_gate_TZ)
    product_TF = F.silu(gate_TF.float()) * up_TF.float() * weight_T.unsqueeze(-1)
    return product_TF.to(up_gate_TZ.dtype)


@FusedKernel
def quantize_rows(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return float8 rows and the float32 scale of each. Shapes: -> x_TD float8, scale_T1."""
    return _quantize_rows(x_TD.float())


@FusedKernel
def quantized_weighted_swiglu(up_gate_TZ: Tensor, weight_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted_swiglu as float8 rows and their scales. Shapes: -> x_TF float8, scale_T1."""
    up_TF, gate_TF = _halves(up_gate_TZ)
    return _quantize_rows(F.silu(gate_TF.float()) * up_TF.float() * weight_T.unsqueeze(-1))


def _halves(up_gate_TZ: Tensor) -> tuple[Tensor, Tensor]:
    """Return both halves; `chunk` would hide from the compiler that they are of one size."""
    up_TF, gate_TF = up_gate_TZ.unflatten(-1, (2, -1)).unbind(-2)
    return up_TF, gate_TF


def _quantize_rows(wide_TD: Tensor) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale_T1 = (wide_TD.abs().amax(dim=-1, keepdim=True) / largest).clamp_min(1e-12)
    units_TD = (wide_TD / scale_T1).clamp(-largest, largest)
    return units_TD.to(torch.float8_e4m3fn), scale_T1
