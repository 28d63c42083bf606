import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError, UnsupportedSizeError
from model.resolution import find_size, list_offered_sizes, list_sizes, nearest_size

BASES = st.sampled_from([256, 512, 768, 1024, 2048])

OFFERED_1024 = (
    "1536x512 1472x576 1408x640 1344x704 1280x768 1216x832 1152x896 1088x960 1024x1024 "
    "960x1088 896x1152 832x1216 768x1280 704x1344 640x1408 576x1472 512x1536"
)


def test_the_offered_sizes_are_those_of_the_parameter_page() -> None:
    assert " ".join(map(str, list_offered_sizes(1024))) == OFFERED_1024


@given(base=BASES)
def test_sizes_run_from_wide_to_tall_and_mirror(base: int) -> None:
    sizes = list_sizes(base)
    assert len(sizes) == 33
    ratios = [size.height_px / size.width_px for size in sizes]
    assert ratios == sorted(ratios)
    assert [(s.width_px, s.height_px) for s in sizes] == [
        (s.height_px, s.width_px) for s in reversed(sizes)
    ]
    assert [size.index for size in sizes] == list(range(33))


def test_an_instruct_checkpoint_has_four_more_shapes_after_the_others() -> None:
    sizes = list_sizes(1024, 37)
    assert sizes[:33] == list_sizes(1024)
    assert [str(size) for size in sizes[33:]] == ["768x1024", "720x1280", "1024x768", "1280x720"]
    assert [size.index for size in sizes[33:]] == [33, 34, 35, 36]
    assert nearest_size(sizes, 9, 16) == sizes[36]


@pytest.mark.parametrize("num_ratios", [0, 32, 34, 36, 38])
def test_a_tokenizer_with_another_number_of_shapes_is_refused(num_ratios: int) -> None:
    with pytest.raises(ConfigError, match=f"has {num_ratios} tokens"):
        list_sizes(1024, num_ratios)


@given(base=BASES, height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_the_nearest_size_is_its_own_nearest(base: int, height: int, width: int) -> None:
    sizes = list_sizes(base)
    size = nearest_size(sizes, height, width)
    assert nearest_size(sizes, size.height_px, size.width_px) == size
    assert find_size(sizes, size.width_px, size.height_px) == size


@given(width=st.integers(-10, 3000), height=st.integers(-10, 3000))
def test_any_other_pair_is_refused_and_never_snapped(width: int, height: int) -> None:
    sizes = list_offered_sizes(1024)
    if f"{width}x{height}" in OFFERED_1024.split():
        assert str(find_size(sizes, width, height)) == f"{width}x{height}"
    else:
        with pytest.raises(UnsupportedSizeError, match=f"{width}x{height}"):
            find_size(sizes, width, height)
