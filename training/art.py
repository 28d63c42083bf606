"""The artwork of the scenes: fetched through npm, cut out, and repainted in other colours."""

import subprocess
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

# Source: package.json of the package says MIT; the artwork is Microsoft's Fluent Emoji, MIT too.
# Both texts are in training/NOTICE.
PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
MEMBER_FOLDER = "package/assets/"

# Kinds that are painted in several colours, and kinds that have one.
COLOURED_FILES = {
    "apple": "1f34e",
    "car": "1f697",
    "balloon": "1f388",
    "heart": "2764-fe0f",
    "star": "2b50",
    "mushroom": "1f344",
}
PLAIN_FILES = {
    "cat": "1f431",
    "dog": "1f436",
    "panda": "1f43c",
    "frog": "1f438",
    "penguin": "1f427",
    "pizza": "1f355",
    "banana": "1f34c",
    "sun": "2600-fe0f",
    "pine tree": "1f332",
    "robot": "1f916",
    "rocket": "1f680",
    "fish": "1f420",
}
FILES = COLOURED_FILES | PLAIN_FILES

# Hue in degrees, and factors on saturation and brightness.
PAINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 1.0, 1.0),
    "yellow": (50.0, 0.95, 1.25),
    "green": (125.0, 0.85, 0.9),
    "blue": (215.0, 1.0, 1.0),
    "purple": (275.0, 0.85, 0.95),
}

Floats = npt.NDArray[np.float32]


def fetch_art(folder: Path) -> None:
    """Put the needed images into `folder`; does nothing when all are there.

    Raises:
        RuntimeError: npm is missing, or cannot fetch the package.
    """
    wanted = {f"{MEMBER_FOLDER}{name}.webp" for name in FILES.values()}
    if all((folder / Path(member).name).is_file() for member in wanted):
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(
            "npm is not installed; the artwork comes from the npm registry"
        ) from None
    except subprocess.CalledProcessError as e:
        raise RuntimeError(f"npm cannot fetch {PACKAGE}: {e.stderr.strip()[-500:]}") from None
    for archive in folder.glob("*.tgz"):
        _unpack(archive, wanted, folder)
        archive.unlink()


def _unpack(archive: Path, wanted: set[str], folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name in wanted else None
            if content is not None:
                (folder / Path(member.name).name).write_bytes(content.read())


@cache
def load_sprite(folder: Path, kind: str, colour: str | None, side_px: int) -> Image.Image:
    """Return one object as RGBA, its longer side `side_px`, in its original colour when None."""
    image = Image.open(folder / f"{FILES[kind]}.webp").convert("RGBA")
    solid = image.getchannel("A").point(lambda alpha: 255 if alpha > 20 else 0)
    image = image.crop(solid.getbbox())
    if colour is not None:
        image = _repaint(image, colour)
    factor = side_px / max(image.size)
    size = (max(2, round(image.width * factor)), max(2, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _repaint(image: Image.Image, colour: str) -> Image.Image:
    """Turn the dominant hue of an image, and hues near to it, into another; keep the rest."""
    rgba_yx4 = np.divide(np.asarray(image), 255, dtype=np.float32)
    rgb_yx3, alpha_yx1 = rgba_yx4[..., :3], rgba_yx4[..., 3:]
    hue_yx, saturation_yx, value_yx = _to_hsv(rgb_yx3)
    vivid = (saturation_yx > 0.3) & (alpha_yx1[..., 0] > 0.3)
    counts, _ = np.histogram(hue_yx[vivid], 36, (0, 360), weights=saturation_yx[vivid])
    dominant = float((counts + np.roll(counts, 1) + np.roll(counts, -1)).argmax() * 10 + 5)
    offset_yx = (hue_yx - dominant + 180) % 360 - 180
    share_yx = np.clip((saturation_yx - 0.15) / 0.15, 0, 1) * np.clip(
        (55 - np.abs(offset_yx)) / 10, 0, 1
    )
    hue, by_saturation, by_value = PAINTS[colour]
    if by_value > 1:  # lighten the shadows more than the lights
        value_yx = value_yx ** (1 / by_value) * min(by_value, 1.1)
    else:
        value_yx = value_yx * by_value
    painted_yx3 = _to_rgb(
        (hue + 0.35 * offset_yx) % 360,
        np.clip(saturation_yx * by_saturation, 0, 1),
        np.clip(value_yx, 0, 1),
    )
    mixed_yx3 = rgb_yx3 + (painted_yx3 - rgb_yx3) * share_yx[..., None]
    mixed_yx4 = np.concatenate((mixed_yx3, alpha_yx1), axis=-1)
    return Image.fromarray((mixed_yx4 * 255).round().astype(np.uint8))


def _to_hsv(rgb_yx3: Floats) -> tuple[Floats, Floats, Floats]:
    """Return hue in degrees, and saturation and value in [0, 1]."""
    red_yx, green_yx, blue_yx = np.moveaxis(rgb_yx3, -1, 0)
    value_yx = rgb_yx3.max(-1)
    span_yx = value_yx - rgb_yx3.min(-1) + 1e-6
    sixth_yx: Floats = np.where(
        value_yx == red_yx,
        ((green_yx - blue_yx) / span_yx) % 6,
        np.where(
            value_yx == green_yx,
            (blue_yx - red_yx) / span_yx + 2,
            (red_yx - green_yx) / span_yx + 4,
        ),
    )
    return sixth_yx * 60, span_yx / (value_yx + 1e-6), value_yx


def _to_rgb(hue_yx: Floats, saturation_yx: Floats, value_yx: Floats) -> Floats:
    """Undo _to_hsv.

    Source: the closed form of HSV to RGB, f(n) = v - v s max(0, min(k, 4 - k, 1)).
    """
    channels = []
    for n in (5, 3, 1):
        k_yx = (n + hue_yx / 60) % 6
        ramp_yx = np.clip(np.minimum(k_yx, 4 - k_yx), 0, 1)
        channels.append(value_yx - value_yx * saturation_yx * ramp_yx)
    return np.stack(channels, axis=-1).astype(np.float32)
