"""Device time of a step by kernel, from torch's profiler."""

from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from tools.bench.step import StepBench, bind_step, build_bench_model
from tools.first_contact.settings import Row

NUM_ROWS = 20
STEPS = 3


def profile_kernels(bench: StepBench) -> Iterator[Row]:
    """Yield a row for each kernel that takes most of a step's time, the longest first."""
    is_cuda = bench.device.startswith("cuda") and torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
    with torch.inference_mode():
        step = bind_step(build_bench_model(bench), bench)
        step()
        with profile(activities=activities) as recorded:
            for _ in range(STEPS):
                step()
            if is_cuda:
                torch.cuda.synchronize()
    entries = [
        (entry.self_device_time_total if is_cuda else entry.self_cpu_time_total, entry)
        for entry in recorded.key_averages()
    ]
    entries.sort(key=lambda pair: -pair[0])
    total = sum(microseconds for microseconds, _ in entries)
    for microseconds, entry in entries[:NUM_ROWS]:
        yield {
            "kernel": entry.key[:120],
            "calls_a_step": entry.count / STEPS,
            "ms_a_step": microseconds / STEPS / 1e3,
            "share": microseconds / total if total else 0.0,
        }
