"""Previews: small images of a latent by a linear map, without the VAE.

`hyimage calibrate` fits the map and writes latent_preview.json beside the weights. Each latent cell
becomes `patch` x `patch` pixels, a linear function of its channels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.errors import ConfigError

FILE_NAME = "latent_preview.json"
CELL_OVER_PATCH = 8  # sides of a cell in the image and in its preview: 1024 pixels become 128
_DIGITS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewMap:
    """A linear map from a latent cell to its pixels, 0 to 1.

    `fingerprint` is the checkpoint's that it was fitted for; `r2` the share of the pixels' variance
    that it explains, over `n` cells. Shapes: weight_PC, bias_P, where P counts patch x patch x RGB.
    """

    fingerprint: str
    patch: int
    weight_PC: Tensor
    bias_P: Tensor
    r2: float
    n: int

    @torch.inference_mode()
    def render(self, latent_BCYX: Tensor) -> npt.NDArray[np.uint8]:
        """Return the preview of one latent. Shapes: latent_BCYX of one image -> rgb_yx3 uint8."""
        weight_PC = self.weight_PC.to(latent_BCYX.device)
        bias_P = self.bias_P.to(latent_BCYX.device)
        pixels_YXP = torch.einsum("cyx,pc->yxp", latent_BCYX[0].float(), weight_PC) + bias_P
        rows, columns, _ = pixels_YXP.shape
        cells = pixels_YXP.clamp(0, 1).view(rows, columns, self.patch, self.patch, 3)
        rgb = cells.permute(0, 2, 1, 3, 4).reshape(rows * self.patch, columns * self.patch, 3)
        preview: npt.NDArray[np.uint8] = (rgb * 255).round().to(torch.uint8).cpu().numpy()
        return preview


def patch_side(pixels_per_token: int) -> int:
    """Return how many pixels a side of a cell has in a preview."""
    return max(1, pixels_per_token // CELL_OVER_PATCH)


def fit_preview_map(
    latents_BCYX: Sequence[Tensor], images_Byx3: Sequence[Tensor], patch: int, fingerprint: str
) -> PreviewMap:
    """Return the least-squares map from latents to their decoded images.

    Shapes: each latent is of one image, each image uint8.
    """
    cells_NC = torch.cat([latent[0].flatten(1).T.float().cpu() for latent in latents_BCYX])
    pixels_NP = torch.cat(
        [
            _cell_pixels(image_Byx3, latent.shape[-2:], patch)
            for latent, image_Byx3 in zip(latents_BCYX, images_Byx3, strict=True)
        ]
    )
    with_one_ND = torch.cat([cells_NC, torch.ones(len(cells_NC), 1)], dim=1).double()
    target_NP = pixels_NP.double()
    solution_DP = torch.linalg.lstsq(with_one_ND, target_NP).solution
    residual = (target_NP - with_one_ND @ solution_DP).square().sum()
    spread = (target_NP - target_NP.mean(0)).square().sum()
    return PreviewMap(
        fingerprint=fingerprint,
        patch=patch,
        weight_PC=solution_DP[:-1].T.float().contiguous(),
        bias_P=solution_DP[-1].float(),
        r2=float(1 - residual / spread.clamp_min(1e-12)),
        n=len(cells_NC),
    )


def save_preview_map(folder: Path, preview: PreviewMap) -> Path:
    """Write the map beside a checkpoint's weights; return where."""
    path = folder / FILE_NAME
    values = {
        "fingerprint": preview.fingerprint,
        "patch": preview.patch,
        "r2": preview.r2,
        "n": preview.n,
        "bias": _rounded(preview.bias_P.tolist()),
        "weight": [_rounded(row) for row in preview.weight_PC.tolist()],
    }
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")
    return path


def load_preview_map(folder: Path, fingerprint: str, channels: int) -> PreviewMap | None:
    """Return a checkpoint's preview map, or None if it has none.

    Raises:
        ConfigError: the file was fitted for other weights, or is not what this module writes.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        preview = PreviewMap(
            fingerprint=str(values["fingerprint"]),
            patch=int(values["patch"]),
            weight_PC=torch.tensor(values["weight"], dtype=torch.float32),
            bias_P=torch.tensor(values["bias"], dtype=torch.float32),
            r2=float(values["r2"]),
            n=int(values["n"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"{path} is not usable ({type(e).__name__}: {e}); delete it, or run `hyimage calibrate`"
        ) from None
    if preview.fingerprint != fingerprint:
        raise ConfigError(
            f"{path} was fitted for other weights ({preview.fingerprint}; these are "
            f"{fingerprint}); delete it, or run `hyimage calibrate`"
        )
    wanted = (3 * preview.patch**2, channels)
    if preview.weight_PC.shape != wanted or preview.bias_P.shape != wanted[:1]:
        raise ConfigError(
            f"{path} maps {tuple(preview.weight_PC.shape)}, and this checkpoint needs {wanted}; "
            "delete it, or run `hyimage calibrate`"
        )
    return preview


def _cell_pixels(image_Byx3: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """Return the pixels of each cell, averaged down to the patch. Shapes: -> NP."""
    rows, columns = grid
    image_13yx = image_Byx3[:1].permute(0, 3, 1, 2).float().cpu() / 255
    small_13yx = torch.nn.functional.adaptive_avg_pool2d(
        image_13yx, (rows * patch, columns * patch)
    )
    cells = small_13yx[0].view(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
    return cells.reshape(rows * columns, 3 * patch**2)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, _DIGITS) for value in values]
