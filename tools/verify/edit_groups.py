"""The recorded groups of input images that run no layer: sizes and pixels."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.resolution import Size, list_sizes, nearest_size
from model.vision import cut_patches, patch_grid
from pipeline.input_image import aligned_size, fit_image, plan_fit, read_input_image
from pipeline.load import Pipeline
from tools.verify.checks import Check, compare_tensors, compare_values, left_out
from tools.verify.recording import Recording

REAL_BASE = 1024


def check_edit_sizes(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare the table of sizes, how input images are fitted to it, and aligned results."""
    recorded = recording.read_json("edit_sizes.json")
    buckets = recorded["buckets_37_base_1024_hw"]
    real = list_sizes(REAL_BASE, len(buckets))
    ours = [[size.height_px, size.width_px] for size in real]
    yield compare_values("edit_sizes", "buckets", ours, buckets)
    tables = {"real": (real, False), "real_resize": (real, True), "tiny": (pipeline.sizes, False)}
    for table, (sizes, is_stretched) in tables.items():
        vit = recorded["vit"][table.removesuffix("_resize")]
        for entry in recorded[table]:
            facts = describe_image(
                entry["width"],
                entry["height"],
                sizes,
                patch_size=vit["patch"],
                max_patches=vit["max_patches"],
                is_stretched=is_stretched,
            )
            name = f"{table} {entry['width']}x{entry['height']}"
            truth = {key: value for key, value in entry.items() if key != "resample"}
            yield compare_values("edit_sizes", name, facts, truth)
    for entry in recorded["aligned"]:
        images = [(width, height) for width, height in entry["pictures_wh"]]
        width, height = entry["drawn_wh"]
        final = aligned_size(images, nearest_size(real, height, width), real, REAL_BASE)
        yield compare_values(
            "edit_sizes", f"aligned {images} {width}x{height}", list(final), entry["final_wh"]
        )


def describe_image(
    width: int,
    height: int,
    sizes: tuple[Size, ...],
    *,
    patch_size: int,
    max_patches: int,
    is_stretched: bool,
) -> dict[str, Any]:
    """Return what the recordings say about an upright input image of these sides."""
    size = nearest_size(sizes, height, width)
    fit = plan_fit(width, height, size, is_stretched=is_stretched)
    down, across = patch_grid(width, height, patch_size, max_patches)
    facts: dict[str, Any] = {
        "width": width,
        "height": height,
        "bucket_wh": [size.width_px, size.height_px],
        "ratio_index": size.index,
        "resize_wh": list(fit.scaled_wh),
        "vit_wh": [across * patch_size, down * patch_size],
        "vit_patches_hw": [down, across],
    }
    if fit.box_ltrb is not None:
        facts["crop_box_ltrb"] = list(fit.box_ltrb)
    return facts


def check_edit_pictures(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare odd input images through the whole preparation."""
    config, ours = pipeline.transformer.config, dict[str, Tensor]()
    for entry in recording.read_json("edit_pictures.json"):
        name = entry["file"].removeprefix("edit_in_").removesuffix(".png")
        image = read_input_image((recording.folder / entry["file"]).read_bytes())
        size = nearest_size(pipeline.sizes, image.height, image.width)
        grid = patch_grid(image.width, image.height, config.patch_size, config.max_patches)
        facts = {
            "upright_wh": list(image.size),
            "bucket_wh": [size.width_px, size.height_px],
            "ratio_index": size.index,
            "vit_patches_hw": list(grid),
        }
        truth = {key: entry[key] for key in facts}
        yield compare_values("edit_pictures", f"{name} sizes", facts, truth)
        for kind, is_stretched in (("center", False), ("resize", True)):
            fit = plan_fit(image.width, image.height, size, is_stretched=is_stretched)
            ours[f"{name}.{kind}.vae_u8"] = torch.tensor(fit_image(image, fit))
        ours[f"{name}.vit_pixel_values"] = cut_patches(
            torch.tensor(np.asarray(image)), grid, config.patch_size, config.max_patches
        )
    tolerances = recording.tolerances("edit_pictures.safetensors")
    for name, recorded in recording.read_tensors("edit_pictures.safetensors").items():
        if name in ours and name in tolerances:
            yield compare_tensors("edit_pictures", name, ours[name], recorded, tolerances[name])
        else:
            yield from left_out("edit_pictures", [name])
