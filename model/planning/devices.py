"""Devices that a memory plan is made for: how many, how large, how fast. Free of torch."""

import re
from dataclasses import dataclass

from model.errors import ConfigError

_GPUS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)GB", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Equal devices of one machine. The defaults are an H100 SXM's data sheet; all are settable."""

    count: int
    memory_bytes: float
    flops: float = 989e12  # dense bfloat16
    bandwidth: float = 3.35e12  # bytes/s
    link: float = 450e9  # bytes/s each way: NVLink 4; PCIe 5 x16 has 64e9
    host_link: float = 55e9  # bytes/s from pinned memory over PCIe 5 x16; PCIe 4 has half
    efficiency: float = 0.6  # of the peak that large matrix products reach


def parse_devices(text: str) -> Devices:
    """Return the devices of a text such as "4x80GB".

    Raises:
        ConfigError: it is not written like that.
    """
    match = _GPUS.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"devices {text!r} are not understood; write COUNTxMEMORY, like 4x80GB")
    return Devices(count=int(match[1]), memory_bytes=float(match[2]) * 1e9)
