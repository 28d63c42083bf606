"""CUDA devices: precision, compilation and warnings before loading, streams for each job."""

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Sequence

import torch

from model import fused
from model.errors import ConfigError
from pipeline.settings import PipelineSettings

log = logging.getLogger(__name__)

# Compute capabilities for which torch has a fast kernel of grouped bfloat16 products.
# Source: torch 2.13, aten/src/ATen/native/cuda/GroupedBlas.cpp.
GROUPED_CAPABILITIES = ((9, 0), (10, 0))
FIRST_FLOAT8_CAPABILITY = (8, 9)


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
    if reason:
        log.warning(
            "small operations are not fused (%s): a step has two to three times the kernels", reason
        )
    device = (settings.layer_devices or (settings.device,))[0]
    for sentence in slow_paths(settings, torch.cuda.get_device_capability(device)):
        log.warning("%s", sentence)


def missing_compiler() -> str:
    """Return what torch.compile lacks for CUDA, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return ""
    return "there is no C compiler, which Triton needs"


def slow_paths(settings: PipelineSettings, capability: tuple[int, int]) -> Iterator[str]:
    """Yield a sentence for each way in which settings or device leave the fast path."""
    number = ".".join(map(str, capability))
    if settings.weights_dtype != "bfloat16":
        yield (
            f"worker.dtype is {settings.weights_dtype}: torch multiplies the experts one by one "
            "and waits for the device in every layer; bfloat16 does neither"
        )
    elif capability not in GROUPED_CAPABILITIES:
        yield (
            f"torch has no fast grouped products for compute capability {number}: it multiplies "
            "the experts one by one and waits for the device in every layer"
        )
    if settings.quantization == "fp8" and capability < FIRST_FLOAT8_CAPABILITY:
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
