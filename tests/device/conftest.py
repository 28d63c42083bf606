"""Checkpoints for a CUDA that pretends: sides that the matrix units of a GPU take."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL_CONFIG
from training.random_checkpoint import write_random_checkpoint

WIDE_CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "hidden_size": 128,
    "attention_head_dim": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 128, "depth": 2},
}
SYSTEM_PROMPTS = """t2i_system_prompt_en_vanilla = "Generate an image of the prompt."
t2i_system_prompt_en_recaption = "Write a better prompt."
t2i_system_prompt_en_think_recaption = "Think, then write a better prompt."
"""


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_random_checkpoint(folder, WIDE_CONFIG)
    return folder


@pytest.fixture(scope="session")
def instruct_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instruct")
    generation = {"sequence_template": "instruct", "use_system_prompt": "dynamic"}
    write_random_checkpoint(folder, WIDE_CONFIG, generation=generation, num_ratios=37)
    (folder / "system_prompt.py").write_text(SYSTEM_PROMPTS, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def distilled_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    config = {**WIDE_CONFIG, "cfg_distilled": True, "use_meanflow": True}
    generation = {"sequence_template": "instruct", "diff_infer_steps": 8}
    write_random_checkpoint(folder, config, generation=generation)
    return folder
