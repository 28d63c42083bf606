"""Transformer training: several processes, one thread each, that share every step.

Two processes with an all-reduce keep both cores busy where two threads of one process wait for
each other at every small product.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import ModelConfig
from model.transformer import HunyuanImage
from training.architecture import build_config
from training.batches import Batch, BatchMaker, plan_step
from training.latents import SMALL_GRID
from training.layout_probe import LayoutProbe
from training.losses import StepLosses, compute_losses
from training.muon import Muon
from training.phases import PHASES, Phase, rate_and_phase
from training.plot import METRICS_NAME
from training.state import append_line, load_state, save_state
from training.tokenizer import build_tokenizer
from training.transformer_start import start_transformer

STATE_NAME = "transformer.pt"

TOKEN_BUDGET = 2300  # of one process and step
MUON_RATE, ADAM_RATE = 0.02, 1.5e-3
MAX_GRADIENT_NORM = 1.5
EMA_SHARE = 0.1  # of the run so far, over which weights are averaged
SAVE_EVERY_S, REPORT_EVERY = 120.0, 50
NICENESS = 10
HAS_BFLOAT16: bool = torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums since the last report."""

    flow: list[float]
    small: list[float]
    text: list[float]
    balance: list[float]
    layout: list[float]


def is_trained(name: str) -> bool:
    """Return whether a parameter belongs to the transformer proper."""
    return not name.startswith(("vae.", "vision_"))


def is_matrix_of_layers(name: str, parameter: Tensor) -> bool:
    """Return whether Muon steps a parameter."""
    return "layers." in name and parameter.dim() >= 2 and "gate.wg" not in name


class TransformerTrainer:
    """Weights, optimisers and averages of one process; equal on all of them."""

    def __init__(
        self,
        folder: Path,
        rank: int = 0,
        world_size: int = 1,
        config: ModelConfig | None = None,
    ) -> None:
        """Start from nothing, or from the state in `folder`; without a config the tiny one."""
        self._rank, self._world_size = rank, world_size
        self.transformer = HunyuanImage(config or build_config())
        start_transformer(self.transformer)
        named = [(n, p) for n, p in self.transformer.named_parameters() if is_trained(n)]
        self.trained: dict[str, Tensor] = dict(named)
        self._probe = LayoutProbe(self.transformer.config.hidden_size)
        for name, parameter in self.transformer.named_parameters():
            parameter.requires_grad_(is_trained(name))
        self._muon = Muon([p for n, p in named if is_matrix_of_layers(n, p)], rank, world_size)
        self._adam = torch.optim.AdamW(
            [p for n, p in named if not is_matrix_of_layers(n, p)] + list(self._probe.parameters()),
            lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0,
        )  # fmt: skip
        self.ema = {name: p.detach().clone() for name, p in named}
        self.step, self.num_images, self.seconds = 0, 0, 0.0
        state = load_state(folder / STATE_NAME)
        if state is not None:
            self.load(state)

    def state(self) -> dict[str, Any]:
        """Return everything that a later run needs to go on."""
        return {
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "ema": self.ema,
            "probe": self._probe.state_dict(),
            "momenta": self._muon.momenta,
            "adam": self._adam.state_dict(),
            "step": self.step,
            "num_images": self.num_images,
            "seconds": self.seconds,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        for name, parameter in self.trained.items():
            parameter.copy_(state["weights"][name])
            self.ema[name].copy_(state["ema"][name])
        for momentum, saved in zip(self._muon.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self._probe.load_state_dict(state["probe"])
        self._adam.load_state_dict(state["adam"])
        self.step, self.num_images = state["step"], state["num_images"]
        self.seconds = state["seconds"]

    def run_step(self, batch: Batch, rate: float) -> StepLosses:
        """Train on one batch; return its losses."""
        torch.manual_seed(self.step * 64 + self._rank)
        # A third faster where the processor multiplies bfloat16, with the same loss to 0.2 %.
        with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16):
            losses = compute_losses(self.transformer, self._probe, batch)
        for parameter in self._all_parameters():
            parameter.grad = None
        losses.total.backward()
        self._share_gradients()
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        self._adam.step()
        self._muon.step(MUON_RATE * rate, momentum=min(0.95, 0.85 + self.step / 3000))
        self.step += 1
        self.num_images += len(batch.latent_BCYX) * self._world_size
        decay = 1 - 1 / (1 + EMA_SHARE * self.step)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.trained.values()), 1 - decay)
        return losses

    def _all_parameters(self) -> list[Tensor]:
        return [*self.trained.values(), *self._probe.parameters()]

    @torch.no_grad()
    def _share_gradients(self) -> None:
        """Average over processes and clip."""
        parameters = self._all_parameters()
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        if self._world_size > 1:
            dist.all_reduce(flat)
            flat /= self._world_size
        flat *= min(1.0, MAX_GRADIENT_NORM / (float(flat.norm()) + 1e-6))
        for parameter, part in zip(
            parameters, flat.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = part.view_as(parameter)


def train_transformer(
    folder: Path, phases: Sequence[Phase], rank: int, world_size: int, rendezvous: Path
) -> None:
    """Train as one of `world_size` processes until the phases are done."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    parent = os.getppid()
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
        )
    trainer = TransformerTrainer(folder, rank, world_size)
    maker = BatchMaker(folder, build_tokenizer(folder / "tokenizer"), TOKEN_BUDGET)
    losses = Losses([], [], [], [], [])
    num_steps = sum(phase.num_steps for phase in phases)
    saved = reported = time.monotonic()
    # An orphan stops: whoever starts the run again would otherwise train against it.
    while trainer.step < num_steps and os.getppid() == parent:
        start = time.monotonic()
        rate, phase = rate_and_phase(trainer.step, phases)
        plan = plan_step(trainer.step, phase.small_share, phase.wordy_share, phase.square_share)
        batch = maker.make(plan, trainer.step, rank)
        step_losses = trainer.run_step(batch, rate)
        trainer.seconds += min(time.monotonic() - start, 60.0)  # a paused step counts no more
        (losses.small if plan.grid == SMALL_GRID else losses.flow).append(step_losses.flow.item())
        losses.text.append(step_losses.text.item())
        losses.balance.append(step_losses.balance.item())
        losses.layout.append(step_losses.layout.item())
        if rank == 0 and trainer.step % REPORT_EVERY == 0:
            _report(folder, trainer, losses, rate, time.monotonic() - reported)
            losses, reported = Losses([], [], [], [], []), time.monotonic()
        is_last = trainer.step == num_steps
        if rank == 0 and (is_last or time.monotonic() - saved > SAVE_EVERY_S):
            save_state(folder / STATE_NAME, trainer.state())
            saved = time.monotonic()


def _report(
    folder: Path, trainer: TransformerTrainer, losses: Losses, rate: float, elapsed_s: float
) -> None:
    def mean(values: list[float]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    line = {
        "step": trainer.step,
        "hours": round(trainer.seconds / 3600, 3),
        "images": trainer.num_images,
        "flow": mean(losses.flow),
        "small": mean(losses.small),
        "text": mean(losses.text),
        "balance": mean(losses.balance),
        "layout": mean(losses.layout),
        "rate": round(rate, 3),
        "s_per_step": round(elapsed_s / REPORT_EVERY, 2),
    }
    append_line(folder / METRICS_NAME, json.dumps(line))


def main(arguments: Sequence[str]) -> None:
    """Train as one process: folder, rank, world size, rendezvous and phases, if any, as JSON."""
    os.nice(NICENESS)
    folder, rank, world_size, rendezvous, *rest = arguments
    phases = tuple(Phase(**fields) for fields in json.loads(rest[0])) if rest else PHASES
    train_transformer(Path(folder), phases, int(rank), int(world_size), Path(rendezvous))


if __name__ == "__main__":
    main(sys.argv[1:])
