"""Pacing: the host is one step ahead for each device, and waits for older ones alone."""

from dataclasses import dataclass, field

import pytest
import torch

from server.worker.pacing import Pacer


@dataclass
class Device:
    """A device that is done with a step when somebody waits for it."""

    enqueued: int = 0
    waited: list[int] = field(default_factory=list)

    def mark(self, device: torch.device) -> "PlacedMark":
        self.enqueued += 1
        return PlacedMark(self, self.enqueued)


@dataclass
class PlacedMark:
    device: Device
    number: int

    def synchronize(self) -> None:
        self.device.waited.append(self.number)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_so_many_steps_are_in_flight_as_there_are_devices(count: int) -> None:
    work = Device()
    pacer = Pacer([torch.device("cuda", n) for n in range(count)], work.mark)
    for step in range(1, 11):
        pacer.wait()
        finished = len(work.waited) // count
        assert step - finished == min(step, count)
    assert work.waited == sorted(work.waited)


def test_a_cpu_is_never_ahead() -> None:
    work = Device()
    Pacer([torch.device("cpu")], work.mark).wait()
    assert work.enqueued == 0
