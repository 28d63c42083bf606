"""A run folder that goes on from an exported checkpoint, for instance from the shipped one.

By hand: `python -m training.from_checkpoint checkpoints/tiny RUN`, then `hyimage train-tiny RUN`,
which refines the decoder; the transformer goes on when phases are added to `training/phases.py`.
What an export leaves out starts anew: momenta and layout probes.
"""

import shutil
import sys
from pathlib import Path

import torch

from model.loading.build import load_model
from model.loading.options import LoadOptions
from training.export import TOKENIZER_FILES
from training.phases import PHASES
from training.recipe import DECODER_STEPS
from training.state import save_state
from training.transformer import STATE_NAME, TransformerTrainer
from training.vae import STATE_NAME as VAE_STATE_NAME


def start_from_checkpoint(checkpoint: Path, run: Path, step: int) -> None:
    """Write the states of a run that has come to `step` with the weights of a checkpoint.

    Raises:
        FileExistsError: the folder holds a run already.
    """
    if (run / STATE_NAME).exists():
        raise FileExistsError(f"{run} holds a run already; name another folder, or go on with it")
    loaded = load_model(checkpoint, LoadOptions(dtype=torch.float32, skip=()))
    (run / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(checkpoint / name, run / "tokenizer" / name)
    save_state(run / VAE_STATE_NAME, {"weights": loaded.vae.state_dict(), "step": DECODER_STEPS})
    weights = dict(loaded.named_parameters())
    trainer = TransformerTrainer(run, config=loaded.config)
    with torch.no_grad():
        for name, parameter in trainer.trained.items():
            parameter.copy_(weights[name])
            trainer.ema[name].copy_(weights[name])
    trainer.step = step
    save_state(run / STATE_NAME, trainer.state())


if __name__ == "__main__":
    start_from_checkpoint(
        Path(sys.argv[1]), Path(sys.argv[2]), sum(phase.num_steps for phase in PHASES)
    )
