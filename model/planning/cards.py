"""Rates of GPU cards: what large matrix products, copies and links reach. Not measured here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Rates that a card reaches on large operands, in FLOP/s and bytes/s; times in seconds.

    `fp8` and `grouped_fp8` are None where the card, or torch on it, has no such kernel. `peak` and
    `peak_bandwidth` are the data sheet's, for a bound that no kernel can pass.
    """

    name: str
    capability: tuple[int, int]
    peak: float  # dense bfloat16; float8 has twice that
    peak_bandwidth: float
    bandwidth: float
    matmul: float  # dense bfloat16
    grouped: float  # grouped bfloat16 products of 64 experts
    has_grouped_kernel: bool  # torch's; without, one in Triton, or a product for each expert
    attention: float
    convolution: float
    matmul_float32: float
    fp8: float | None
    grouped_fp8: float | None
    link: float  # all-reduce bus bandwidth
    host_link: float  # from pinned memory
    link_latency_s: float = 15e-6


_PCIE4, _PCIE5 = 27e9, 55e9


# Shares of the data sheets' peaks that published benchmarks reach: 0.84 of the bandwidth, 0.63 of
# dense bfloat16, 0.58 grouped, 0.55 attention, 0.35 convolutions, 0.68 of float32.
# Source: NVIDIA's data sheets (TFLOP/s of bfloat16 and float32, TB/s: H100 SXM 989, 67, 3.35; H200
# 989, 67, 4.8; B200 2250, 75, 8; A100 312, 19.5, 2.04; RTX PRO 6000 503, 125, 1.79; RTX 4090 165,
# 82.6, 1.01); the shares are those of a review of 2026-11-23 and were not measured by this project.
def _card(
    name: str,
    capability: tuple[int, int],
    tflops: tuple[float, float],
    tbytes: float,
    links: tuple[float, float],
    **others: Any,
) -> Card:
    peak = tflops[0] * 1e12
    rates: dict[str, Any] = {
        "grouped": 0.58 * peak,
        "has_grouped_kernel": True,
        "fp8": 1.11 * peak,
        "grouped_fp8": None,
        **others,
    }
    return Card(
        name=name,
        capability=capability,
        peak=peak,
        peak_bandwidth=1e12 * tbytes,
        bandwidth=0.84e12 * tbytes,
        matmul=0.63 * peak,
        attention=0.55 * peak,
        convolution=0.35 * peak,
        matmul_float32=0.68e12 * tflops[1],
        link=links[0],
        host_link=links[1],
        **rates,
    )


def _one_by_one(tflops: float) -> dict[str, Any]:
    """Return the rates of a card for which torch has no grouped products.

    The share is that of products of one expert after the other; the Triton kernel's is not known.
    """
    return {"grouped": 0.4e12 * tflops, "has_grouped_kernel": False}


CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        _card("H100", (9, 0), (989, 67), 3.35, (380e9, _PCIE5), grouped_fp8=1.02 * 989e12),
        _card("H200", (9, 0), (989, 67), 4.8, (380e9, _PCIE5), grouped_fp8=1.02 * 989e12),
        _card("B200", (10, 0), (2250, 75), 8.0, (760e9, _PCIE5), grouped_fp8=1.02 * 2250e12),
        _card("A100", (8, 0), (312, 19.5), 2.04, (230e9, _PCIE4), fp8=None, **_one_by_one(312)),
        _card("RTX PRO 6000", (12, 0), (503, 125), 1.79, (45e9, _PCIE5), **_one_by_one(503)),
        _card("RTX 4090", (8, 9), (165, 82.6), 1.01, (20e9, _PCIE4), **_one_by_one(165)),
    )
}
# The card that is meant by a memory of at most so many GB.
_BY_MEMORY = ((32, "RTX 4090"), (48, "A100"), (85, "H100"), (100, "RTX PRO 6000"), (150, "H200"))


def card_of_memory(memory_bytes: float) -> Card:
    """Return the card whose rates are assumed for a device of this memory."""
    for most_gb, name in _BY_MEMORY:
        if memory_bytes <= most_gb * 1e9:
            return CARDS[name]
    return CARDS["B200"]
