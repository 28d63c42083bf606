"""Load options: devices, dtypes, quantization and offload of a checkpoint in memory."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.quantization.scheme import SCALE_SUFFIX

# Parts of the checkpoint that text-to-image never runs; their files are still checked.
IMAGE_INPUT_PARTS = ("vision_model", "vision_aligner", "vae.encoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """The devices and dtypes of a checkpoint's parameters."""

    device: str = "cpu"
    layer_devices: tuple[str, ...] = ()  # layers are spread over these; the first is `device`
    dtype: torch.dtype = torch.bfloat16
    quantization: str = "none"  # or a name of SCHEMES; a quantized folder needs none
    vae_dtype: torch.dtype = torch.float32
    skip: tuple[str, ...] = IMAGE_INPUT_PARTS
    weights_bytes: int | None = None  # on the device; experts beyond it are offloaded
    offload: Literal["cpu", "disk"] = "cpu"  # where offloaded experts are held


def parameter_dtype(name: str, parameter: Tensor, options: LoadOptions) -> torch.dtype:
    """Return the dtype in which a parameter of the skeleton is held.

    The router stays float32 at any dtype: a rounded score can flip the choice of experts.
    Quantized matrices and their scales have dtypes of their own.
    """
    if name.endswith(SCALE_SUFFIX) or parameter.dtype != torch.float32:
        return parameter.dtype
    if name.endswith("mlp.gate.wg.weight"):
        return torch.float32
    return options.vae_dtype if name.startswith("vae.") else options.dtype
