"""CUDA devices: precision, compilation and warnings before loading, streams for each job."""

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Sequence

import torch

from model import fused, grouped
from model.errors import ConfigError
from model.quantization import fp8_cuda
from pipeline.settings import PipelineSettings

log = logging.getLogger(__name__)


def prepare_device(settings: PipelineSettings) -> None:
    """Choose how this process computes; warn of whatever leaves the fast path of its device.

    Raises:
        ConfigError: kernels are to be compiled, and there is no compiler.
    """
    if not settings.is_cuda:
        return
    # float32 means float32: cuDNN's convolutions round to TF32 unless this is off.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    reason = "it is off" if settings.compile_kernels == "off" else missing_compiler()
    if reason and settings.compile_kernels == "on":
        raise ConfigError(
            f"worker.compile_kernels is on, but {reason}; install it, or leave the setting at auto"
        )
    fused.enable_compilation(not reason)
    grouped.use_torch()
    if reason:
        log.warning(
            "small operations are not fused (%s): a step has two to three times the kernels", reason
        )
    devices = [torch.device(name) for name in settings.layer_devices or (settings.device,)]
    dtype = getattr(torch, settings.weights_dtype)
    in_triton = [not reason and _enable_triton(device, dtype) for device in devices]
    capability = torch.cuda.get_device_capability(devices[0])
    for sentence in slow_paths(settings, capability, all(in_triton)):
        log.warning("%s", sentence)


def _enable_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the experts are multiplied in Triton where torch's product is slow."""
    if grouped.is_fast(dtype, torch.cuda.get_device_capability(device)):
        return False
    problem = grouped.enable_triton(device, dtype)
    if problem:
        log.warning("%s: no grouped products in Triton: %s", device, problem)
    return not problem


def missing_compiler() -> str:
    """Return what torch.compile lacks for CUDA, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return ""
    return "there is no C compiler, which Triton needs"


def slow_paths(
    settings: PipelineSettings, capability: tuple[int, int], has_triton: bool = False
) -> Iterator[str]:
    """Yield a sentence for each way in which settings or device leave the fast path.

    `has_triton`: experts are multiplied in Triton where torch has no fast grouped products.
    """
    number = ".".join(map(str, capability))
    if has_triton:
        yield (
            "the experts are multiplied by a Triton kernel, because torch has no fast product "
            f"of {settings.weights_dtype} groups for compute capability {number}; its time was "
            "never measured"
        )
    elif settings.weights_dtype != "bfloat16":
        yield (
            f"worker.dtype is {settings.weights_dtype}: torch multiplies the experts one by one "
            "and waits for the device in every layer; bfloat16 does neither"
        )
    elif capability not in grouped.GROUPED_CAPABILITIES:
        yield (
            f"torch has no fast grouped products for compute capability {number}: it multiplies "
            "the experts one by one and waits for the device in every layer"
        )
    if settings.quantization == "fp8" and capability < fp8_cuda.FIRST_CAPABILITY:
        yield (
            f"compute capability {number} has no float8 units: fp8 weights save memory, and are "
            "dequantized at every step; int8 is as large and more exact"
        )


class JobStreams:
    """CUDA streams of one job, one on each device of a model that is spread over several.

    On a device's default stream the last layers of one job would stand before the first layers of
    the next: the devices would work one after the other. One device gains nothing from streams.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Make the streams; they start after what is queued on the default streams."""
        is_spread = len(devices) > 1 and devices[0].type == "cuda"
        self._streams = [torch.cuda.Stream(device) for device in devices if is_spread]
        for stream in self._streams:
            stream.wait_stream(torch.cuda.default_stream(stream.device))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Enqueue the block's work on these streams."""
        with contextlib.ExitStack() as stack:
            for stream in self._streams:
                stack.enter_context(torch.cuda.stream(stream))
            yield
