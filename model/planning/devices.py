"""Devices that a memory plan is made for: how many, how large, which card. Free of torch."""

import re
from dataclasses import dataclass

from model.errors import ConfigError
from model.planning.cards import CARDS, Card, card_of_memory

_GPUS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)GB", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Equal devices of one machine, with the rates of a card.

    Without a compiler small operations are not fused there.
    """

    count: int
    memory_bytes: float
    card: Card = CARDS["H100"]
    has_compiler: bool = True


def parse_devices(text: str, card: str | None = None, has_compiler: bool = True) -> Devices:
    """Return the devices of a text such as "4x80GB"; without a card, one of that memory.

    Raises:
        ConfigError: it is not written like that, or the card is not known.
    """
    if card and card not in CARDS:
        raise ConfigError(f"card {card!r} is not known; {', '.join(CARDS)} are")
    match = _GPUS.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"devices {text!r} are not understood; write COUNTxMEMORY, like 4x80GB")
    memory_bytes = float(match[2]) * 1e9
    return Devices(
        count=int(match[1]),
        memory_bytes=memory_bytes,
        card=CARDS[card] if card else card_of_memory(memory_bytes),
        has_compiler=has_compiler,
    )
