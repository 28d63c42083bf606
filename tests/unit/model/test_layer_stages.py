"""Stages of layers over devices: each device works on one microbatch, others on others."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.layer_stages import Stage, list_stages, pipeline_order

COUNTS = st.integers(1, 8)


def makespan(num_stages: int, num_microbatches: int, stage_s: float = 1.0) -> float:
    """Return when the last microbatch leaves the last device, each device a queue in order."""
    free = [0.0] * num_stages
    done = dict[tuple[int, int], float]()
    for stage, microbatch in pipeline_order(num_stages, num_microbatches):
        arrived = done[stage - 1, microbatch] if stage else 0.0
        free[stage] = max(free[stage], arrived) + stage_s
        done[stage, microbatch] = free[stage]
    return max(free)


@given(num_stages=COUNTS, num_microbatches=COUNTS)
def test_every_stage_runs_every_microbatch_once_and_after_the_stage_before(
    num_stages: int, num_microbatches: int
) -> None:
    order = list(pipeline_order(num_stages, num_microbatches))
    assert sorted(order) == [(s, m) for s in range(num_stages) for m in range(num_microbatches)]
    place = {pair: index for index, pair in enumerate(order)}
    for microbatch in range(num_microbatches):
        places = [place[stage, microbatch] for stage in range(num_stages)]
        assert all(before < after for before, after in pairwise(places))


@given(num_stages=COUNTS, num_microbatches=COUNTS)
def test_equal_stages_take_as_many_stage_times_as_there_are_waves(
    num_stages: int, num_microbatches: int
) -> None:
    assert makespan(num_stages, num_microbatches) == num_stages + num_microbatches - 1


@pytest.mark.parametrize(("num_devices", "share"), [(2, 0.75), (4, 0.625)])
def test_the_two_rows_of_one_guided_image_overlap(num_devices: int, share: float) -> None:
    one_after_the_other = 2 * num_devices
    assert makespan(num_devices, 2) / one_after_the_other == share


def test_neighbouring_layers_on_one_device_are_one_stage() -> None:
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    devices = [first, first, second, second, second]
    assert list_stages(devices, 0, 5) == [Stage(first, 0, 2), Stage(second, 2, 5)]
    assert list_stages(devices, 1, 3) == [Stage(first, 1, 2), Stage(second, 2, 3)]
