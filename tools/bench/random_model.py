"""Models with random weights, made on their device: the time of a step does not depend on them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.loading.build import build_skeleton
from model.loading.options import LoadOptions, parameter_dtype
from model.quantization.scheme import SCALE_SUFFIX, SCHEMES
from model.transformer import HunyuanImage

# Root mean square of the stored values below, before their scale.
_STORED_RMS = {torch.float8_e4m3fn: 100.0, torch.int8: 73.0, torch.uint8: 4.6}


def build_random_model(config: ModelConfig, options: LoadOptions) -> HunyuanImage:
    """Return the transformer with random weights, quantized ones too; it has no VAE."""
    torch.manual_seed(0)
    scheme = SCHEMES.get(options.quantization)
    transformer = build_skeleton(config, scheme=scheme)
    transformer.vae = None  # type: ignore[assignment]
    stored = torch.float32 if scheme is None else scheme.dtype
    scale = config.hidden_size**-0.5 / _STORED_RMS.get(stored, 1.0)
    for module, name, parameter, dtype in _parameters(transformer, options):
        device = torch.device(options.device)
        if name.endswith(SCALE_SUFFIX):
            values = torch.full(parameter.shape, scale, dtype=dtype, device=device)
        else:
            values = random_tensor(tuple(parameter.shape), dtype, device)
        setattr(module, name, nn.Parameter(values, requires_grad=False))
    return transformer


def count_model_bytes(config: ModelConfig, options: LoadOptions) -> int:
    """Return the bytes of what build_random_model would make."""
    transformer = build_skeleton(config, scheme=SCHEMES.get(options.quantization))
    transformer.vae = None  # type: ignore[assignment]
    parameters = _parameters(transformer, options)
    return sum(parameter.numel() * dtype.itemsize for _, _, parameter, dtype in parameters)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return weights that keep the size of what they multiply, or stored values of a scheme.

    A stack of matrices is filled one by one, so that no float32 copy of it is ever held.
    """
    if len(shape) == 3:
        values = torch.empty(shape, dtype=dtype, device=device)
        for index in range(shape[0]):
            values[index].copy_(random_tensor(shape[1:], dtype, device))
        return values
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device=device)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, device=device)
    spread = 1.0
    if dtype == torch.float8_e4m3fn:
        spread = _STORED_RMS[dtype]
    elif len(shape) > 1:
        spread = shape[-1] ** -0.5
    return (torch.randn(shape, device=device) * spread).clamp(-448, 448).to(dtype)


def _parameters(
    transformer: HunyuanImage, options: LoadOptions
) -> Iterator[tuple[nn.Module, str, Tensor, torch.dtype]]:
    """Yield each parameter with its module and the dtype in which it is held."""
    for module_name, module in list(transformer.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            dtype = parameter_dtype(f"{module_name}.{name}", parameter, options)
            yield module, name, parameter, dtype
