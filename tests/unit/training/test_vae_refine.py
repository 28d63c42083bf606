import random
from pathlib import Path

import pytest
import torch

from model.vae import Conv3d, Vae
from training.architecture import build_config
from training.muon import step_kernels
from training.state import save_state
from training.vae import STATE_NAME, crop_scenes, load_ema_vae
from training.vae_refine import DecoderRefiner, rate_factor, refinement_loss
from training.vae_start import start_vae


@pytest.fixture
def run(art: Path, tmp_path: Path) -> Path:
    """A run whose autoencoder is at its closed-form start."""
    torch.manual_seed(0)
    vae = Vae(build_config().vae)
    start_vae(vae, crop_scenes(random.Random(1), 40, art))
    save_state(tmp_path / STATE_NAME, {"weights": vae.state_dict(), "step": 0})
    return tmp_path


def test_steps_of_kernels_lower_a_loss_and_leave_the_slices_that_multiply_padding() -> None:
    torch.manual_seed(0)
    convolution = Conv3d(4, 6, 3, padding=1)
    before = convolution.weight.detach().clone()
    x_BC1yx, wanted_BZ1yx = torch.randn(2, 4, 1, 8, 8), torch.randn(2, 6, 1, 8, 8)
    momenta = [torch.zeros(6, 36)]
    losses = []
    for _ in range(20):
        loss = (convolution(x_BC1yx) - wanted_BZ1yx).square().mean()
        convolution.zero_grad()
        loss.backward()
        step_kernels([convolution.weight], momenta, rate=0.01)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(convolution.weight[:, :, [0, 2]], before[:, :, [0, 2]])
    assert not torch.equal(convolution.weight[:, :, 1], before[:, :, 1])


def test_an_error_at_the_edge_of_a_token_costs_more_than_the_same_elsewhere() -> None:
    wanted_B3yx = torch.zeros(1, 3, 128, 128)
    at_edge_B3yx, elsewhere_B3yx = wanted_B3yx.clone(), wanted_B3yx.clone()
    at_edge_B3yx[..., 62:64] = 0.1
    elsewhere_B3yx[..., 30:32] = 0.1
    assert refinement_loss(at_edge_B3yx, wanted_B3yx) > refinement_loss(elsewhere_B3yx, wanted_B3yx)


def test_the_rate_rises_stands_and_falls() -> None:
    factors = [rate_factor(step, 1000) for step in (0, 19, 400, 700, 999)]
    assert factors == pytest.approx([0.05, 1.0, 1.0, 0.5, 0.02])


def test_a_refinement_goes_on_where_it_was_saved_and_leaves_the_encoder(
    run: Path, art: Path
) -> None:
    started = load_ema_vae(run)
    first = DecoderRefiner(run, art, num_steps=50)
    first.run_step()
    first.save()
    resumed = DecoderRefiner(run, art, num_steps=50)
    assert resumed.step == 1
    assert first.run_step() == resumed.run_step()
    refined = load_ema_vae(run)
    for name, parameter in started.state_dict().items():
        is_same = torch.equal(parameter, refined.state_dict()[name])
        assert is_same or name.startswith("decoder."), name
    assert not torch.equal(started.decoder.conv_in.weight, refined.decoder.conv_in.weight)
