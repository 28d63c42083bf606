"""The delay between two tries of an outgoing request."""

import random

# Source: the hosted service's integration guide: 250 ms, doubling, at most 8 s, with jitter.
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 8.0


def backoff_s(num_tries: int) -> float:
    """Return how long to wait after so many failed tries, spread so that calls come apart."""
    delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(num_tries - 1, 16))
    return delay_s * random.uniform(0.75, 1.25)
