"""Refinement of the trained decoder: sharper things, and no grid of tokens in even backgrounds.

The first training leaves errors that repeat in every token: in a plain background two thirds of
the squared error were one pattern of 64x64 pixels. Here Muon steps the kernels, and differences
across the edges of tokens count extra.
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.latents import encode_images, encoder_matrix
from training.muon import step_kernels
from training.scenes import TOKEN_PX
from training.state import Report, append_line, load_state, save_state
from training.vae import (
    EMA_DECAY,
    LATENT_NOISE,
    REFINED_NAME,
    crop_scenes,
    image_loss,
    load_ema_vae,
    measure_and_show,
)

KERNEL_RATE, OTHER_RATE = 0.0005, 1.5e-4
# Added to image_loss: PSNR is wanted, so squares weigh more, and the grid is seen first.
SQUARE_WEIGHT, EDGE_WEIGHT = 3.5, 0.08
WARM_STEPS, FALLING_SHARE, LAST_RATE = 20, 0.6, 0.02
# (tokens of a crop's side, number of crops); the large ones towards the end, as in training.
CROPS, LATE_CROPS = ((4, 4), (4, 4), (6, 2)), ((6, 2), (8, 1))
FIRST_SEED = 500_000
SAVE_EVERY = 100


def refinement_loss(decoded_B3yx: Tensor, wanted_B3yx: Tensor) -> Tensor:
    """Return the loss of training, with more weight on squares and on the edges of tokens."""
    error_B3yx = decoded_B3yx - wanted_B3yx
    loss = image_loss(decoded_B3yx, wanted_B3yx) + SQUARE_WEIGHT * error_B3yx.square().mean()
    for axis in (-1, -2):
        change_B3yx = error_B3yx.diff(dim=axis)
        edges = torch.arange(TOKEN_PX - 1, change_B3yx.shape[axis], TOKEN_PX)
        loss = loss + EDGE_WEIGHT * change_B3yx.index_select(axis, edges).abs().mean()
    return loss


def rate_factor(step: int, num_steps: int) -> float:
    """Return the factor on the rates at a step: a short rise, then a fall over the last 60 %."""
    falling = (1 - step / num_steps) / FALLING_SHARE
    return min(1.0, (step + 1) / WARM_STEPS, max(LAST_RATE, falling))


class DecoderRefiner:
    """Weights, optimisers and averages of the refinement; all of it survives a kill."""

    def __init__(self, folder: Path, art: Path, num_steps: int) -> None:
        self._folder, self._art, self._num_steps = folder, art, num_steps
        self.vae = load_ema_vae(folder)
        self.vae.decoder.requires_grad_(requires_grad=True)
        self._encoder = encoder_matrix(self.vae, TOKEN_PX)
        parameters = list(self.vae.decoder.parameters())
        self._kernels = [p for p in parameters if p.dim() == 5]
        self._momenta = [torch.zeros(len(p), p[:, :, 0].numel() // len(p)) for p in self._kernels]
        self._adam = torch.optim.AdamW(
            [p for p in parameters if p.dim() != 5],
            lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0,
        )  # fmt: skip
        self.ema = {name: p.clone() for name, p in self.vae.decoder.state_dict().items()}
        self.step = 0
        state = load_state(folder / REFINED_NAME)
        if state is not None:
            self.vae.load_state_dict(state["weights"])
            self.ema, self._momenta = state["ema"], state["momenta"]
            self._adam.load_state_dict(state["adam"])
            self.step = state["step"]

    def run_step(self) -> float:
        """Train on one batch; return its mean squared error in [-1, 1]."""
        rng = random.Random(FIRST_SEED + self.step)
        torch.manual_seed(self.step)
        factor = rate_factor(self.step, self._num_steps)
        tokens, count = rng.choice(LATE_CROPS if self._is_late else CROPS)
        rgb_Byx3 = crop_scenes(rng, count, self._art, tokens)
        wanted_B3yx = rgb_Byx3.movedim(-1, 1).contiguous()
        mean_BCYX = encode_images(rgb_Byx3, *self._encoder)
        mean_BCYX += LATENT_NOISE * torch.rand(()) * torch.randn_like(mean_BCYX)
        with torch.autocast("cpu", torch.bfloat16):
            decoded_B3yx = self.vae.decode(mean_BCYX)
        self.vae.decoder.zero_grad()
        refinement_loss(decoded_B3yx, wanted_B3yx).backward()
        nn.utils.clip_grad_norm_(self.vae.decoder.parameters(), 1.0)
        for group in self._adam.param_groups:
            group["lr"] = OTHER_RATE * factor
        self._adam.step()
        step_kernels(self._kernels, self._momenta, KERNEL_RATE * factor)
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.vae.decoder.state_dict().items():
                self.ema[name].lerp_(parameter, 1 - decay)
            return float((decoded_B3yx - wanted_B3yx).square().mean())

    @property
    def _is_late(self) -> bool:
        return self.step / self._num_steps > FALLING_SHARE

    def save(self) -> None:
        """Write everything that a later run needs to go on."""
        state = {
            "weights": self.vae.state_dict(),
            "ema": self.ema,
            "momenta": self._momenta,
            "adam": self._adam.state_dict(),
            "step": self.step,
        }
        save_state(self._folder / REFINED_NAME, state)


def refine_decoder(folder: Path, art: Path, num_steps: int, report: Report) -> None:
    """Refine, or go on refining, until `num_steps` steps are done; report each hundred."""
    refiner = DecoderRefiner(folder, art, num_steps)
    errors: list[float] = []
    start = time.monotonic()
    while refiner.step < num_steps:
        errors.append(refiner.run_step())
        if refiner.step % SAVE_EVERY == 0 or refiner.step == num_steps:
            refiner.save()
            line = (
                f"refined {refiner.step}, error {np.mean(errors):.5f}, "
                f"{measure_and_show(folder, art)}, "
                f"{(time.monotonic() - start) / len(errors):.2f} s/step"
            )
            append_line(folder / "vae.log", line)
            report(f"decoder: {line}")
            errors, start = [], time.monotonic()
