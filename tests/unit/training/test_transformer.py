import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.config_file import parse_config
from model.kv_cache import build_step_groups, prefill
from model.sequence import ImageSequence
from model.transformer import HunyuanImage
from model.vae import Vae
from training.architecture import FIELDS
from training.backgrounds import BACKGROUNDS
from training.batches import IGNORED, Batch, plan_step
from training.forward import Sequences, predict
from training.latents import OFFERED_GRIDS, SMALL_GRID, encode_images, encoder_matrix
from training.layout_probe import probe_targets
from training.muon import orthogonalize
from training.phases import Phase, rate_and_phase
from training.scenes import COLOURS, KINDS, Scene, Thing
from training.state import save_state
from training.transformer import STATE_NAME, TransformerTrainer
from training.transformer_start import start_transformer
from training.vae_start import start_vae

SMALL: dict[str, Any] = {
    **FIELDS,
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "moe_intermediate_size": 16,
    "patch_embed_hidden_dim": 24,
    "norm_num_groups": 4,
    "vae_downsample_factor": [4, 4],
    "vae": {
        **FIELDS["vae"],
        "block_out_channels": [12, 24, 24],
        "latent_channels": 12,
        "ffactor_spatial": 4,
    },
    "vit_aligner": {**FIELDS["vit_aligner"], "n_embed": 32},
}


@pytest.fixture(scope="module")
def small_config() -> ModelConfig:
    return parse_config(SMALL)


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(0, 64, (3, 7), generator=generator)
    lengths_B = torch.tensor([4, 7, 6])
    return Batch(
        sequences=Sequences(ids_BS, lengths_B, (3, 5)),
        latent_BCYX=torch.randn(3, 12, 3, 5, generator=generator),
        targets_BS=torch.where(torch.arange(7) < 4, ids_BS, IGNORED),
        layout_BS4=torch.zeros(3, 15, 4, dtype=torch.int64),
        first_ratio=60,
    )


def test_the_training_forward_equals_prefix_and_step(small_config: ModelConfig) -> None:
    generated = HunyuanImage(small_config)
    start_transformer(generated)
    generated.requires_grad_(requires_grad=False)
    for parameter in generated.parameters():  # leave the start, where much is zero
        generator = torch.Generator().manual_seed(1)
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    batch = make_batch(0)
    timestep_B = torch.tensor([30.0, 500.0, 990.0])
    predictions = predict(generated, batch.sequences, batch.latent_BCYX, timestep_B)
    for row, length in enumerate(batch.sequences.lengths_B.tolist()):
        ids = tuple(batch.sequences.ids_BS[row, :length].tolist())
        sequence = ImageSequence(
            ids=(*ids, *(0,) * 16), prefix_length=length, grid_height=3, grid_width=5
        )
        this = slice(row, row + 1)
        x_BSD = generated.embed_step(batch.latent_BCYX[this], timestep_B[this])
        x_BSD = generated.run_layers(x_BSD, build_step_groups(generated, [sequence]))
        velocity_BCYX = generated.predict_velocity(x_BSD, timestep_B[this], (3, 5))
        logits_BSV = generated.text_logits(prefill(generated, ids).hidden_1SD)
        # float32 sums in another order, through two layers
        assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
        assert_close(predictions.velocity_BCYX[this], velocity_BCYX)
        assert_close(predictions.logits_BSV[this, :length], logits_BSV)


def run_steps(trainer: TransformerTrainer, first: int, count: int) -> list[float]:
    return [trainer.run_step(make_batch(first + i), rate=1.0).flow.item() for i in range(count)]


def test_a_resumed_run_goes_on_exactly_where_the_saved_one_stood(
    small_config: ModelConfig, tmp_path: Path
) -> None:
    first = TransformerTrainer(tmp_path, config=small_config)
    run_steps(first, 0, 3)
    save_state(tmp_path / STATE_NAME, first.state())
    resumed = TransformerTrainer(tmp_path, config=small_config)
    assert resumed.step == 3
    assert run_steps(first, 3, 2) == run_steps(resumed, 3, 2)
    for name, averaged in first.ema.items():
        assert torch.equal(averaged, resumed.ema[name])


def test_training_lowers_the_loss_on_one_batch(small_config: ModelConfig, tmp_path: Path) -> None:
    trainer = TransformerTrainer(tmp_path, config=small_config)
    losses = [trainer.run_step(make_batch(0), rate=1.0).flow.item() for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_the_closed_form_autoencoder_is_linear_and_restores_smooth_images() -> None:
    torch.manual_seed(0)
    vae = Vae(parse_config(SMALL).vae).requires_grad_(requires_grad=False)
    ramp_y = torch.linspace(-0.8, 0.8, 16)
    gains = torch.rand(400, 1, 1, 3) * 2 - 1
    rgb_Byx3 = gains * ramp_y[None, :, None, None].expand(400, 16, 16, 1)
    start_vae(vae, rgb_Byx3)
    rgb_B3yx = rgb_Byx3[:8].movedim(-1, 1)
    mean_BCYX, _ = vae.encode(rgb_B3yx)
    by_matrix_BCYX = encode_images(rgb_Byx3[:8], *encoder_matrix(vae, 4))
    torch.testing.assert_close(by_matrix_BCYX, mean_BCYX, atol=1e-4, rtol=1e-4)
    error: Tensor = (vae.decode(mean_BCYX) - rgb_B3yx).square().mean()
    assert error < 0.01 * rgb_B3yx.square().mean()


def test_an_orthogonal_step_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(3, 24, 24)))
    assert singular.max() < 1.3
    assert singular.median() > 0.7


def test_the_learning_rate_follows_the_phases_and_stays_at_the_last() -> None:
    phases = (Phase(100, 1.0, 0.0), Phase(100, 0.0, 0.1, rate_from=1.0, rate_to=0.0))
    assert rate_and_phase(50, phases) == (1.0, phases[0])
    assert rate_and_phase(150, phases) == (0.5, phases[1])
    assert rate_and_phase(999, phases) == (0.0, phases[1])


def test_steps_are_planned_alike_on_every_process() -> None:
    """Another process hashes strings otherwise and draws other numbers before it plans."""
    code = (
        "import random; from training.batches import plan_step; random.seed(5); "
        "print([plan_step(step, 0.3, 0.2) for step in reversed(range(400))])"
    )
    command = [sys.executable, "-c", code]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plans = [plan_step(step, 0.3, 0.2) for step in reversed(range(400))]
    assert other.stdout.strip() == str(plans)


def test_steps_cover_every_grid_and_small_images_have_short_captions() -> None:
    plans = [plan_step(step, 0.3, 0.2) for step in range(400)]
    assert {plan.grid for plan in plans} == {*OFFERED_GRIDS, SMALL_GRID}
    assert not any(plan.is_wordy for plan in plans if plan.grid == SMALL_GRID)


def test_the_targets_of_the_layout_probe_name_the_thing_at_each_token() -> None:
    thing = Thing(KINDS[3], COLOURS[1], "small", column=2, row=1)
    scene = Scene(8, 6, BACKGROUNDS[2], "center", (thing,))
    targets_YX4 = probe_targets([scene]).view(6, 8, 4)
    inside_YX = targets_YX4[..., 0] > 0
    assert inside_YX.sum() == 16
    assert inside_YX[1:5, 2:6].all()
    assert targets_YX4[1, 2].tolist() == [4, 2, 1, 2]
    assert targets_YX4[4, 5].tolist() == [4, 2, 16, 2]
    assert targets_YX4[0, 0].tolist() == [0, 0, 0, 2]


def test_training_lowers_what_the_layout_probe_loses(
    small_config: ModelConfig, tmp_path: Path
) -> None:
    trainer = TransformerTrainer(tmp_path, config=small_config)
    losses = [trainer.run_step(make_batch(0), rate=1.0).layout.item() for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
