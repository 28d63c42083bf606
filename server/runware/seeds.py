"""Seeds of the images of a task, fixed at admission so that the task can be run again."""

import secrets

# The API's stated maximum is 2^63 as JavaScript rounds it; it must be accepted.
# Source: `seed` on the parameter page of runware:180@1.
MAX_SEED = 9223372036854776000


def image_seeds(first: int | None, count: int) -> tuple[int, ...]:
    """Return the seeds of `count` images: first, first + 1, ..., wrapping at the maximum.

    Without a first seed one is generated from the unsigned 32-bit range, as the API promises.
    """
    if first is None:
        first = secrets.randbelow(2**32)
    return tuple((first + k) % (MAX_SEED + 1) for k in range(count))
