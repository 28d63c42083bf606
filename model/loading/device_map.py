"""Device map: layers spread over several devices of one process.

The simplest way to more memory, and no faster than one device: they compute one after the other.
Several jobs in flight keep more than one of them busy.

Not accelerate's dispatch: its hooks move the arguments of every module at every call but not the
tensors inside attention groups, and its maps keep room free for layers that are offloaded.
"""

from collections.abc import Sequence

from model.loading.options import LoadOptions, parameter_dtype
from model.transformer import HunyuanImage


def spread_layers(sizes: Sequence[int], extra: int, count: int) -> list[int]:
    """Return a device for each layer, in order, so that the fullest device holds the least.

    The first device also holds `extra` bytes: embeddings, head and VAE.
    """
    low, high = max(max(sizes), extra), sum(sizes) + extra
    while low < high:
        middle = (low + high) // 2
        if _fill(sizes, extra, middle)[-1] < count:
            high = middle
        else:
            low = middle + 1
    return _fill(sizes, extra, low)


def _fill(sizes: Sequence[int], extra: int, limit: int) -> list[int]:
    """Return a device for each layer when each is filled up to a limit before the next."""
    device, held = 0, extra
    indices: list[int] = []
    for size in sizes:
        if held + size > limit:
            device, held = device + 1, 0
        held += size
        indices.append(device)
    return indices


def layer_sizes(transformer: HunyuanImage, options: LoadOptions) -> tuple[list[int], int]:
    """Return the bytes of each layer, and of everything else."""
    sizes = [0] * len(transformer.layers)
    extra = 0
    for name, parameter in transformer.named_parameters():
        num_bytes = parameter.numel() * parameter_dtype(name, parameter, options).itemsize
        if name.startswith("model.layers."):
            sizes[int(name.split(".")[2])] += num_bytes
        else:
            extra += num_bytes
    return sizes, extra


def map_layers(transformer: HunyuanImage, options: LoadOptions) -> list[str]:
    """Return the device of each layer under the options."""
    devices = options.layer_devices or (options.device,)
    sizes, extra = layer_sizes(transformer, options)
    return [devices[index] for index in spread_layers(sizes, extra, len(devices))]
