"""Modes of spreading a model over ranks or devices, by name. Free of torch."""

import re
from typing import Any

from server.runware.errors import CommandError


def parse_mode(mode: str, device: str = "cpu") -> dict[str, Any]:
    """Return the pipeline's settings of "single", "layers2", "cfg2xtensor2", "tensor2-expert", ...

    On "cuda" each part of the layers takes a card.

    Raises:
        CommandError: it is not written like that.
    """
    if mode == "single":
        return {}
    if match := re.fullmatch(r"layers([1-9]\d?)", mode):
        count = int(match[1])
        is_cuda = device.startswith("cuda")
        devices = tuple(f"cuda:{i}" for i in range(count)) if is_cuda else (device,) * count
        return {"layer_devices": devices}
    match = re.fullmatch(r"(?:cfg(2))?x?(?:tensor([1-9]\d?)(-expert)?)?", mode)
    if not mode or match is None:
        raise CommandError(
            f"mode {mode!r} is not known; write single, layers2, cfg2, tensor2, cfg2xtensor2 or "
            "cfg2xtensor2-expert"
        )
    cfg, tensor, expert = match.groups()
    return {
        "cfg_parallel_size": int(cfg or 1),
        "tensor_parallel_size": int(tensor or 1),
        "expert_parallel": expert is not None,
    }
