"""Readings of device memory: of CUDA devices alone, at most once a second."""

import torch

from server.engine.messages import MemoryReading
from server.worker.memory_report import MemoryReporter


def read(device: torch.device) -> tuple[MemoryReading, ...]:
    return (MemoryReading(str(device), "peak", 1),)


def test_devices_are_read_once_a_second() -> None:
    times = iter([10.0, 10.9, 11.0])
    devices = [torch.device("cuda:0"), torch.device("cuda:1")]
    reporter = MemoryReporter(devices, lambda: next(times), read)
    first = reporter.read_if_due()
    assert first is not None
    assert [reading.device for reading in first.readings] == ["cuda:0", "cuda:1"]
    assert reporter.read_if_due() is None
    assert reporter.read_if_due() is not None


def test_a_worker_without_a_device_reports_none() -> None:
    assert MemoryReporter([torch.device("cpu")], read=read).read_if_due() is None
