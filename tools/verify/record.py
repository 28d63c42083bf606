"""Regression recordings: this implementation's own results, which show change but not error.

The truth lies in recordings of the official reference. This one guards a checkpoint that the
reference never ran, such as the trained tiny one, against changes that nobody meant to make.
"""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from model.resolution import nearest_size
from model.template import Prompt
from pipeline.denoise import denoise, start_run
from pipeline.load import Pipeline
from pipeline.noise import image_noise
from schedulers.build import build_scheduler
from schedulers.trajectory import Trajectory
from server.runware.errors import CommandError

# Heights come first in recordings. Few steps: a rounding error grows with each.
CASES: dict[str, dict[str, Any]] = {
    "square_guided": {
        "prompt": "a red car on a beach", "image_size": [1024, 1024],
        "guidance": 5.0, "steps": 4, "seed": 1,
    },
    "wide_unguided": {
        "prompt": "a wide panorama of a penguin to the left of a cat at sunset",
        "image_size": [704, 1344], "guidance": 1.0, "steps": 2, "seed": 2,
    },
}  # fmt: skip
KIND = "regression: this implementation's own results, not the reference's"
TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}  # float32 on another processor, through routers


def record_checkpoint(pipeline: Pipeline, folder: Path) -> None:
    """Generate the cases with a float32 checkpoint and write what `hyimage verify` compares.

    Raises:
        CommandError: the folder holds a recording of another kind; that is not overwritten.
    """
    manifest_path = folder / "manifest.json"
    if manifest_path.exists() and KIND not in manifest_path.read_text(encoding="utf-8"):
        raise CommandError(f"{folder} holds a recording that is not ours; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    cases: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for name, inputs in CASES.items():
        case = {**inputs, "flow_shift": pipeline.generation.flow_shift, "files": [f"{name}.0.png"]}
        recorded, image_yx3 = _generate(pipeline, case)
        save_file(recorded, folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors").chmod(0o644)  # the library makes it its owner's alone
        Image.fromarray(image_yx3.numpy()).save(folder / f"{name}.0.png", optimize=True)
        cases[name] = case
        for tensor_name, tensor in recorded.items():
            tensors[f"{name}.safetensors:{tensor_name}"] = {
                "shape": list(tensor.shape),
                "dtype": "float32",
                "tolerance": "exact" if tensor_name in ("latents_init", "sigmas") else TOLERANCE,
            }
    manifest = {
        "which": KIND,
        "dtype": "float32",
        "cases": cases,
        "tensors": tensors,
    }
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _generate(pipeline: Pipeline, case: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Return a case's tensors by name, and its image. Shapes: -> rgb_yx3 uint8."""
    transformer = pipeline.transformer
    size = nearest_size(pipeline.sizes, *case["image_size"])
    guidance = case["guidance"]
    rows = pipeline.rows(Prompt(text=case["prompt"]), None, size, guidance)
    noise_BCYX = image_noise(case["seed"], pipeline.latent_shape(size))
    solver = build_scheduler("Default", case["steps"], case["flow_shift"]).solver
    run = start_run(transformer, rows, Trajectory(solver, noise_BCYX), guidance)
    recorded = {"latents_init": noise_BCYX, "sigmas": torch.tensor(solver.sigmas)}
    for done in denoise(transformer, [run]):
        recorded[f"pred_step{done.step}"] = done.velocity_BCYX.contiguous().clone()
        recorded[f"latents_step{done.step}"] = done.latent_BCYX.contiguous().clone()
    image_yx3 = pipeline.decode(run.trajectory.latent_BCYX)[0]
    return recorded, image_yx3
