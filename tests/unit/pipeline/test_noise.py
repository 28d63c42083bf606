import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.noise import image_noise
from server.runware.seeds import MAX_SEED, image_seeds

SEEDS = st.integers(0, MAX_SEED)


@given(seed=SEEDS)
def test_a_seed_names_one_noise(seed: int) -> None:
    assert torch.equal(image_noise(seed, (1, 4, 3, 5)), image_noise(seed, (1, 4, 3, 5)))


@given(seed=st.integers(0, 2**62), other=st.integers(0, 2**62))
def test_different_seeds_give_different_noise(seed: int, other: int) -> None:
    same = torch.equal(image_noise(seed, (1, 4, 4, 4)), image_noise(other, (1, 4, 4, 4)))
    assert same == (seed == other)


def test_seeds_that_agree_in_their_low_32_bits_still_differ() -> None:
    noises = [image_noise(7 + (k << 32), (1, 8, 4, 4)) for k in (0, 1, 2, 2**30)]
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


@given(seed=SEEDS)
def test_noise_is_standard_normal_float32(seed: int) -> None:
    noise = image_noise(seed, (1, 32, 32, 32))
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


@given(first=SEEDS, count=st.integers(1, 20))
def test_the_seeds_of_a_task_count_up_and_wrap_at_the_maximum(first: int, count: int) -> None:
    seeds = image_seeds(first, count)
    assert seeds[0] == first
    assert all(b == (0 if a == MAX_SEED else a + 1) for a, b in itertools.pairwise(seeds))
    assert image_seeds(seeds[-1], 1) == seeds[-1:]


def test_a_task_without_a_seed_gets_one_in_the_unsigned_32_bit_range() -> None:
    generated = {image_seeds(None, 1)[0] for _ in range(50)}
    assert len(generated) > 45
    assert max(generated) < 2**32
