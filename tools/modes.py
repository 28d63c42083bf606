"""Modes of spreading a model over ranks or devices, by name. Free of torch."""

import re
from typing import Any

from server.runware.errors import CommandError


def parse_mode(mode: str) -> dict[str, Any]:
    """Return the pipeline's settings of "single", "layers2", "cfg2xtensor2", "tensor2-expert", ...

    Raises:
        CommandError: it is not written like that.
    """
    if mode == "single":
        return {}
    if match := re.fullmatch(r"layers([1-9]\d?)", mode):
        return {"layer_devices": ("cpu",) * int(match[1])}
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
