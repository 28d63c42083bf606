"""The number of kernels of a denoising step at the real size, held to kernel_budget.json.

Counted on the meta device by `model/planning/step_count.py`, for a card with grouped products and
float8 (H100): a fused function is one kernel (`tests/unit/model/test_fused.py` proves that torch's
compiler makes one of it), a view is none. How often a step waits for the device is in
`test_syncs.py`.

A change of the numbers is written by

    python -m tests.device.test_kernel_budget --write
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from model.config import ModelConfig
from model.config_file import parse_config
from model.planning.cards import CARDS
from model.planning.meta_step import MeshShape, Workload, build_meta_mesh
from model.planning.step_count import count_mode
from model.quantization.scheme import SCHEMES
from tests.conftest import GOLDEN

BUDGET = Path(__file__).with_name("kernel_budget.json")
COMMAND = "python -m tests.device.test_kernel_budget --write"
MESHES = {"one device": (1, 1), "tensor4": (1, 4), "cfg2xtensor2": (2, 2)}
MODES = [f"{mesh}, {scheme}" for mesh in MESHES for scheme in ("bfloat16", *SCHEMES)]
# The numbers do not depend on the sizes of the prompt and the image.
WORKLOAD = Workload(prompt_tokens=256, grid=(64, 64))


def real_config() -> ModelConfig:
    fields = json.loads((GOLDEN / "real_config_distil.json").read_text())
    distilled = ("cfg_distilled", "use_meanflow")
    return parse_config({k: v for k, v in fields.items() if k not in distilled})


def count_kernels(mode: str) -> dict[str, int]:
    """Return the kernels of a guided step's parts and of one of its layers."""
    mesh, scheme = mode.split(", ")
    config = real_config()
    ranks = build_meta_mesh(MeshShape(*MESHES[mesh]))
    counted = count_mode(config, ranks, WORKLOAD, CARDS["H100"], SCHEMES.get(scheme))
    layers = counted.layers.num_kernels
    assert layers % len(config.layers) == 0
    return {
        "embed": counted.embed.num_kernels,
        "layer": layers // len(config.layers),
        "head": counted.head.num_kernels,
        "step": counted.whole.num_kernels,
    }


def differences(recorded: dict[str, int] | None, counted: dict[str, int]) -> list[str]:
    """Return a sentence for every part whose number of kernels is not the recorded one."""
    if recorded is None:
        return ["not recorded"]
    return [
        f"{part}: {'more' if count > recorded[part] else 'fewer'} kernels, {count} for "
        f"{recorded[part]}"
        for part, count in counted.items()
        if count != recorded[part]
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_has_the_kernels_that_are_written_down(mode: str) -> None:
    recorded: dict[str, Any] = json.loads(BUDGET.read_text())
    found = differences(recorded.get(mode), count_kernels(mode))
    assert not found, f"{mode}: {found}; if that is meant, run {COMMAND}"


def test_nothing_is_written_down_that_is_not_counted() -> None:
    assert sorted(json.loads(BUDGET.read_text())) == sorted(MODES)


def test_growth_and_falls_are_both_named() -> None:
    assert differences({"embed": 4, "layer": 9}, {"embed": 4, "layer": 9}) == []
    assert differences({"layer": 9}, {"layer": 10}) == ["layer: more kernels, 10 for 9"]
    assert differences({"layer": 9}, {"layer": 8}) == ["layer: fewer kernels, 8 for 9"]
    assert differences(None, {"layer": 8}) == ["not recorded"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    counts = {mode: count_kernels(mode) for mode in MODES}
    lines = [f"  {json.dumps(mode)}: {json.dumps(counted)}" for mode, counted in counts.items()]
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
