"""A rehearsal of these tests without a GPU: `PRETEND_CUDA=1 pytest tests/gpu`.

They then run on a CUDA that pretends (`tests/device/pretend_cuda.py`), as a test of `make test`
does: it shows that they can pass, and computes no kernel of a GPU.
"""

import contextlib
import os
from collections.abc import Iterator

from tests.device.pretend_functions import pretended_cuda
from tests.device.pretend_mesh import GlooNccl, pretended_mesh

IS_REHEARSAL = os.environ.get("PRETEND_CUDA") == "1"


@contextlib.contextmanager
def cuda_at_hand() -> Iterator[None]:
    """Run the block on CUDA: the machine's, or one that pretends; also in a rank's process."""
    with contextlib.ExitStack() as stack:
        if IS_REHEARSAL:
            stack.enter_context(pretended_cuda())
        yield


@contextlib.contextmanager
def nccl_at_hand() -> Iterator[None]:
    """Let the ranks of the block exchange through NCCL, or through one that pretends."""
    with contextlib.ExitStack() as stack:
        if IS_REHEARSAL:
            stack.enter_context(pretended_mesh(GlooNccl()))
        yield
