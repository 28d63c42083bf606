"""Block of an input image in a prompt: which tokens it has, and where they stand. Free of torch."""

from dataclasses import dataclass

NUM_BEFORE_IMAGE = 4  # <boi>, size, ratio, <timestep>
SEPARATOR = "<joint_img_sep>"  # between the tokens of the latent and those of the vision tower


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """Tokens of an input image: those of its latent, row by row, then the vision tower's.

    The tower has `num_slots` tokens for every image, of which the patches fill the first.
    """

    ratio_index: int
    height: int
    width: int
    patches_down: int
    patches_across: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """The place of an input image in a sequence: `start` is its first latent token.

    Before it stand `<boi>`, size, ratio and `<timestep>`, behind it `<eoi>`, all of them causal.
    """

    grid: ImageGrid
    start: int

    @classmethod
    def after(cls, length: int, grid: ImageGrid) -> "ImageBlock":
        """Return the block whose `<boi>` follows so many tokens."""
        return cls(grid, length + NUM_BEFORE_IMAGE)

    @property
    def separator(self) -> int:
        """Return the position of `<joint_img_sep>`, between latent and vision tokens."""
        return self.start + self.grid.height * self.grid.width

    @property
    def stop(self) -> int:
        return self.separator + 1 + self.grid.num_slots


def count_block_tokens(num_latent: int, num_slots: int) -> int:
    """Return the tokens of an input image, `<boi>` to `<eoi>`."""
    return NUM_BEFORE_IMAGE + num_latent + 1 + num_slots + 1
