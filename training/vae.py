"""Decoder training on crops of scenes. The encoder keeps its closed form."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.vae import Vae
from training.architecture import build_config
from training.decoder_quality import DecoderQuality, measure_decoder
from training.latents import encode_images, encoder_matrix
from training.scenes import TOKEN_PX, choose_size, grid_of, make_scene, paint_scene
from training.sheets import save_sheet
from training.state import Report, append_line, load_state, save_state
from training.vae_start import start_vae

STATE_NAME, REFINED_NAME = "vae.pt", "vae_refined.pt"
NUM_START_CROPS = 600
CROP_TOKENS = 4
BATCH = 8
LEARNING_RATE = 6e-4
EMA_DECAY = 0.995
# Standard deviation of the noise on latents: the decoder then tolerates the transformer's errors.
LATENT_NOISE = 0.06
SAVE_EVERY = 100


def crop_scenes(
    rng: random.Random, count: int, art: Path, tokens: int = CROP_TOKENS, per_scene: int = 4
) -> Tensor:
    """Return crops on the token grid, most of them at an object. Shapes: -> rgb_Byx3 in [-1, 1]."""
    crops: list[np.ndarray] = []
    while len(crops) < count:
        scene = make_scene(rng, *grid_of(choose_size(rng)))
        image_yx3 = paint_scene(scene, art)
        for _ in range(per_scene):
            thing = rng.choice(scene.things)
            column = thing.column + rng.randrange(-tokens // 2, thing.side - tokens // 2 + 1)
            row = thing.row + rng.randrange(-tokens // 2, thing.side - tokens // 2 + 1)
            left = min(max(column, 0), scene.columns - tokens) * TOKEN_PX
            top = min(max(row, 0), scene.rows - tokens) * TOKEN_PX
            side = tokens * TOKEN_PX
            crops.append(image_yx3[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(crops[:count]).astype(np.float32) / 127.5 - 1)


def build_started_vae(folder: Path, art: Path) -> Vae:
    """Return the autoencoder as last saved in `folder`, or at its closed-form start."""
    vae = Vae(build_config().vae)
    state = load_state(folder / STATE_NAME)
    if state is not None:
        vae.load_state_dict(state["weights"])
        return vae
    torch.manual_seed(0)
    start_vae(vae, crop_scenes(random.Random(1), NUM_START_CROPS, art))
    save_state(folder / STATE_NAME, {"weights": vae.state_dict(), "step": 0})
    return vae


def load_ema_vae(folder: Path) -> Vae:
    """Return the autoencoder with averaged weights, refined if it was, as it is exported."""
    state = load_state(folder / REFINED_NAME) or load_state(folder / STATE_NAME)
    assert state is not None, "the autoencoder was never started"
    vae = Vae(build_config().vae)
    vae.load_state_dict(state["weights"])
    if "ema" in state:
        vae.decoder.load_state_dict(state["ema"])
    return vae.eval().requires_grad_(requires_grad=False)


def image_loss(decoded_B3yx: Tensor, wanted_B3yx: Tensor) -> Tensor:
    """Return mean absolute and squared error, and the error of neighbouring differences."""
    error_B3yx = decoded_B3yx - wanted_B3yx
    edges = error_B3yx.diff(dim=-1).abs().mean() + error_B3yx.diff(dim=-2).abs().mean()
    return error_B3yx.abs().mean() + 0.5 * error_B3yx.square().mean() + 0.5 * edges


class DecoderTrainer:
    """Weights, optimiser and data of the decoder's training; all of it survives a kill."""

    def __init__(self, folder: Path, art: Path, num_steps: int) -> None:
        self._folder, self._art, self._num_steps = folder, art, num_steps
        self.vae = build_started_vae(folder, art)
        self.vae.encoder.requires_grad_(requires_grad=False)
        self._encoder = encoder_matrix(self.vae, TOKEN_PX)
        self._optimizer = torch.optim.AdamW(
            self.vae.decoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0
        )
        state = load_state(folder / STATE_NAME)
        assert state is not None
        self.step: int = state["step"]
        self.ema: dict[str, Tensor] = state.get(
            "ema", {name: p.clone() for name, p in self.vae.decoder.state_dict().items()}
        )
        if "optimizer" in state:
            self._optimizer.load_state_dict(state["optimizer"])

    def run_step(self) -> float:
        """Train on one batch; return its loss."""
        rng = random.Random(1000 + self.step)
        torch.manual_seed(self.step)
        fraction = self.step / self._num_steps
        rate = LEARNING_RATE * min(1.0, (self.step + 1) / 20, max(0.02, (1 - fraction) / 0.5))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # Larger crops, and fewer, towards the end: norms then compute over sizes as in use.
        tokens, count = ((6, 4), (8, 2))[rng.randrange(2)] if fraction > 0.7 else (CROP_TOKENS, 8)
        rgb_Byx3 = crop_scenes(rng, count, self._art, tokens)
        rgb_B3yx = rgb_Byx3.movedim(-1, 1).contiguous()
        mean_BCYX = encode_images(rgb_Byx3, *self._encoder)
        mean_BCYX += LATENT_NOISE * torch.rand(()) * torch.randn_like(mean_BCYX)
        with torch.autocast("cpu", torch.bfloat16):
            loss = image_loss(self.vae.decode(mean_BCYX), rgb_B3yx)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.decoder.parameters(), 1.0)
        self._optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.vae.decoder.state_dict().items():
                self.ema[name].lerp_(parameter, 1 - decay)
        return loss.item()

    def save(self) -> None:
        """Write everything that a later run needs to go on."""
        state = {
            "weights": self.vae.state_dict(),
            "ema": self.ema,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
        }
        save_state(self._folder / STATE_NAME, state)


def train_decoder(folder: Path, art: Path, num_steps: int, report: Report) -> None:
    """Train, or go on training, until `num_steps` steps are done; report each hundred."""
    trainer = DecoderTrainer(folder, art, num_steps)
    log = folder / "vae.log"
    losses: list[float] = []
    start = time.monotonic()
    while trainer.step < num_steps:
        losses.append(trainer.run_step())
        if trainer.step % SAVE_EVERY == 0 or trainer.step == num_steps:
            trainer.save()
            quality = measure_and_show(folder, art)
            line = (
                f"step {trainer.step} loss {np.mean(losses):.4f} {quality} "
                f"{(time.monotonic() - start) / len(losses):.2f} s/step"
            )
            append_line(log, line)
            report(f"decoder: {line}")
            losses, start = [], time.monotonic()


def measure_and_show(folder: Path, art: Path, count: int = 6) -> DecoderQuality:
    """Return the quality over whole images of unseen scenes, and save them as a sheet."""
    quality, pairs = measure_decoder(load_ema_vae(folder), art, count)
    images = [image for pair in pairs for image in pair]
    save_sheet(folder / "sheets" / "vae.png", images, [""] * len(images), columns=4)
    return quality
