"""Environment variables of a training process: memory allocator and threads."""

import os
from collections.abc import Mapping

# Freed activations stay in the process instead of going back to the kernel page by page: a
# training step of the decoder took 0.37 s instead of 0.46 s.
ALLOCATOR: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_WAIT_POLICY": "passive",
}


def training_environment(num_threads: int) -> dict[str, str]:
    """Return the environment for a training process."""
    return {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(num_threads)}
