"""The set-up of a process, seen from the environment of a fresh one."""

import os
import subprocess
import sys

import pytest

CODE = """
import os
from server.process import configure_process
configure_process()
print(os.environ.get("PYTORCH_ALLOC_CONF"), os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
import torch
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True,pinned_max_round_threshold_mb:1 None"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:False None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "None max_split_size_mb:64"),
    ],
)
def test_torch_is_given_its_allocator_settings_unless_the_operator_gave_some(
    given: dict[str, str], expected: str
) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_ALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True, text=True, timeout=120, check=True, env={**inherited, **given},
    )  # fmt: skip
    assert done.stdout.strip() == expected
