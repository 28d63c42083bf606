"""Rates of GPU cards: what large matrix products, copies and links reach. Not measured here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Rates that a card reaches on large operands, in FLOP/s and bytes/s; times in seconds.

    `fp8` and `grouped_fp8` are None where the card, or torch on it, has no such kernel.
    """

    name: str
    bandwidth: float
    matmul: float  # dense bfloat16
    grouped: float  # grouped bfloat16 products of 64 experts
    attention: float
    convolution: float
    matmul_float32: float
    fp8: float | None
    grouped_fp8: float | None
    link: float  # all-reduce bus bandwidth
    link_latency_s: float = 15e-6


# Shares of the data sheets' peaks that published benchmarks reach: 0.84 of the bandwidth, 0.63 of
# dense bfloat16, 0.58 grouped, 0.55 attention, 0.35 convolutions.
# Source: NVIDIA's data sheets (H100 SXM 989 TFLOP/s and 3.35 TB/s, H200 4.8 TB/s, B200 2250 and
# 8 TB/s, A100 312 and 2.04, RTX PRO 6000 503 and 1.79, RTX 4090 165 and 1.01); the shares are those
# of a review of 2026-11-23 and were not measured by this project.
def _card(name: str, tflops: float, tbytes: float, link: float, **others: float | None) -> Card:
    peak = tflops * 1e12
    rates: dict[str, Any] = {
        "matmul_float32": 0.07 * peak / 1.5,
        "grouped": 0.58 * peak,
        "fp8": 1.11 * peak,
        "grouped_fp8": None,
        **others,
    }
    return Card(
        name=name,
        bandwidth=0.84e12 * tbytes,
        matmul=0.63 * peak,
        attention=0.55 * peak,
        convolution=0.35 * peak,
        link=link,
        **rates,
    )


CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        _card("H100", 989, 3.35, 380e9, grouped_fp8=1.02 * 989e12),
        _card("H200", 989, 4.8, 380e9, grouped_fp8=1.02 * 989e12),
        _card("B200", 2250, 8.0, 760e9, grouped_fp8=1.02 * 2250e12),
        # Without torch's fast grouped kernel: a loop of products on the experts' tokens.
        _card("A100", 312, 2.04, 230e9, grouped=0.4 * 312e12, fp8=None),
        _card("RTX PRO 6000", 503, 1.79, 45e9, grouped=0.4 * 503e12),
        _card("RTX 4090", 165, 1.01, 20e9, grouped=0.4 * 165e12),
    )
}
