"""The delays between tries: 250 ms, doubling to 8 s, with jitter."""

import pytest

from server.delivery.backoff import backoff_s


@pytest.mark.parametrize(
    ("num_tries", "middle_s"), [(1, 0.25), (2, 0.5), (5, 4.0), (6, 8.0), (7, 8.0), (5000, 8.0)]
)
def test_a_delay_doubles_to_eight_seconds_and_is_spread(num_tries: int, middle_s: float) -> None:
    delays = [backoff_s(num_tries) for _ in range(50)]
    assert all(0.75 * middle_s <= delay <= 1.25 * middle_s for delay in delays)
    assert len(set(delays)) > 1
