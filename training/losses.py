"""Losses of the transformer: flow matching, captions, even experts, layout."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import HunyuanImage
from training.batches import IGNORED, Batch
from training.forward import predict
from training.layout_probe import LayoutProbe

TEXT_WEIGHT, BALANCE_WEIGHT, LAYOUT_WEIGHT = 0.03, 0.01, 0.3
RATIO_WEIGHT = 6.0
# Logit-normal sigmas, towards noise: what stands where follows from the caption alone only
# there. At location 0.8 a seventh of the images lay above 0.9; after 2,800 steps the loss at 0.5
# was 0.03, and yet half of all objects could not be predicted from their captions.
# Source of the form: Esser et al. 2024 (arXiv 2403.03206), section 3.1.
SIGMA_LOCATION, SIGMA_SCALE = 1.6, 1.4


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Scalars of one batch."""

    flow: Tensor
    text: Tensor
    balance: Tensor
    layout: Tensor

    @property
    def total(self) -> Tensor:
        """Return the weighted sum that is minimised."""
        others = TEXT_WEIGHT * self.text + BALANCE_WEIGHT * self.balance
        return self.flow + others + LAYOUT_WEIGHT * self.layout


def compute_losses(transformer: HunyuanImage, probe: LayoutProbe, batch: Batch) -> StepLosses:
    """Return the losses of a batch at random noise levels."""
    latent_BCYX = batch.latent_BCYX
    sigma_B = torch.sigmoid(SIGMA_LOCATION + SIGMA_SCALE * torch.randn(len(latent_BCYX)))
    sigma_B111 = sigma_B[:, None, None, None]
    noise_BCYX = torch.randn_like(latent_BCYX)
    noisy_BCYX = (1 - sigma_B111) * latent_BCYX + sigma_B111 * noise_BCYX
    predictions = predict(transformer, batch.sequences, noisy_BCYX, sigma_B * 1000)
    return StepLosses(
        flow=(predictions.velocity_BCYX - (noise_BCYX - latent_BCYX)).square().mean(),
        text=_text_loss(predictions.logits_BSV, batch),
        balance=predictions.balance,
        layout=probe(predictions.features_BSD, batch.layout_BS4),
    )


def _text_loss(logits_BSV: Tensor, batch: Batch) -> Tensor:
    targets = batch.targets_BS.flatten()
    losses = F.cross_entropy(
        logits_BSV.flatten(0, 1), targets, ignore_index=IGNORED, reduction="none"
    )
    # The shape is one token among many, and the only one that the model ever samples.
    weights = torch.where(targets >= batch.first_ratio, RATIO_WEIGHT, 1.0)
    return (losses * weights).sum() / (targets != IGNORED).sum().clamp_min(1)
