"""Input images of `hyimage generate`: read from their files, and checked without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint_info import CheckpointInfo
from pipeline.input_image import check_input_image
from server.runware.errors import CommandError


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The bytes of input images in the order of the command line, and the sides of each."""

    contents: tuple[bytes, ...] = ()
    sides_wh: tuple[tuple[int, int], ...] = ()


def read_input_files(paths: Sequence[Path], info: CheckpointInfo, checkpoint: str) -> InputFiles:
    """Return input images of which every header has been checked.

    Raises:
        CommandError: the checkpoint takes none or fewer, or a file cannot be read.
        InputImageError: one is no image that can be used; the message has the file's name.
    """
    if not paths:
        return InputFiles()
    if not info.max_input_images:
        raise CommandError(
            f"--image: {checkpoint} takes no input images. Its template is {info.template!r}, and "
            "only Instruct checkpoints were trained to edit; name the folder of one, such as "
            "HunyuanImage-3.0-Instruct, with --checkpoint, or leave --image out"
        )
    if len(paths) > info.max_input_images:
        raise CommandError(
            f"--image is given {len(paths)} times; at most {info.max_input_images} input images "
            "are taken"
        )
    contents, sides = [], []
    for path in paths:
        try:
            contents.append(path.read_bytes())
        except OSError as e:
            raise CommandError(
                f"--image {path} cannot be read ({e.strerror}); name an image file"
            ) from None
        sides.append(check_input_image(contents[-1], f"--image {path}"))
    return InputFiles(tuple(contents), tuple(sides))
