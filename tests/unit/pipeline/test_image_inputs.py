"""Generation with input images, on the recorded checkpoint with the instruct template."""

import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.errors import PromptTooLongError
from model.image_input import ImageInputsOffError
from model.template import Prompt, Template
from pipeline.generate import generate
from pipeline.image_inputs import InputImages, load_input_images
from pipeline.input_image import InputImageError
from pipeline.load import Pipeline, load_pipeline
from pipeline.noise import posterior_noise
from pipeline.prompt import PreparedPrompt, rewrite_prompts
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from tests.conftest import GOLDEN, GOLDEN_CHECKPOINT

EDIT = GOLDEN / "edit"


def file(name: str) -> bytes:
    return (EDIT / f"edit_in_{name}.png").read_bytes()


@pytest.fixture(scope="module")
def instruct(golden_pipeline: Pipeline) -> Pipeline:
    return replace(
        golden_pipeline,
        template=Template(golden_pipeline.tokenizer, "instruct", 256),
        generation=replace(golden_pipeline.generation, template="instruct"),
        max_rewrite_tokens=16,
    )


@pytest.fixture
def edit() -> ImageRequest:
    return ImageRequest(
        prompt="make it night",
        width_px=272,
        height_px=240,
        num_steps=1,
        guidance=2.0,
        seeds=(7,),
        images=(file("odd_l"),),
    )


def images_of(pipeline: Pipeline, request: ImageRequest) -> list[ImageDone]:
    return [e for e in generate(pipeline, request) if isinstance(e, ImageDone)]


def pixels_of(pipeline: Pipeline, request: ImageRequest) -> npt.NDArray[np.uint8]:
    (image,) = images_of(pipeline, request)
    return image.pixels_yx3


def test_the_image_depends_on_each_input_image_and_on_their_order(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    first, second = file("odd_l"), file("odd_rgba")
    variants: Sequence[tuple[bytes, ...]] = ((first,), (first, second), (second, first))
    one, two, swapped = (pixels_of(instruct, replace(edit, images=v)) for v in variants)
    assert not np.array_equal(one, two)
    assert not np.array_equal(two, swapped)


def test_an_image_does_not_depend_on_its_neighbours_of_the_same_request(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    both = images_of(instruct, replace(edit, seeds=(7, 8)))
    for image, seed in zip(both, (7, 8), strict=True):
        alone = pixels_of(instruct, replace(edit, seeds=(seed,)))
        assert np.array_equal(image.pixels_yx3, alone)


def test_both_rows_share_one_prefill_of_the_input_images(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    (prompt,) = _prompts(instruct, edit)
    size = instruct.sizes[16]
    rows = instruct.rows(prompt.prompt, None, size, 2.0)
    assert rows[0].prefix_length == rows[1].prefix_length
    (block,) = rows[0].blocks
    with torch.inference_mode():
        conditional = prompt.prompt_cache.get_or_compute(rows[0].prefix_ids)
        unconditional = prompt.prompt_cache.get_or_compute(rows[1].prefix_ids)
    for ours, theirs in zip(conditional.layers, unconditional.layers, strict=True):
        assert theirs.before is not None
        assert theirs.before.length > block.stop
        assert theirs.before.k_BGSH.data_ptr() == ours.k_BGSH.data_ptr()
    text_only = rows[0].prefix_length - (block.stop + 1)  # behind <eoi>
    assert prompt.prompt_cache.num_computed == rows[0].prefix_length + text_only


def test_two_input_images_of_one_shape_are_told_apart_by_the_kv_cache(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    """Their token ids are the same; a cache of one must not serve the other."""
    (one,) = _prompts(instruct, replace(edit, images=(file("grey"),)))
    (other,) = _prompts(instruct, replace(edit, images=(file("turned"),)))
    ids, other_ids = (
        instruct.rows(p.prompt, None, instruct.sizes[16], 1.0)[0].prefix_ids for p in (one, other)
    )
    assert ids == other_ids
    with torch.inference_mode():
        alone = other.prompt_cache.get_or_compute(ids)
        first = one.prompt_cache.get_or_compute(ids)
        forked = one.prompt_cache.fork(other.prompt_cache.images)
        again = forked.get_or_compute(ids)
    torch.testing.assert_close(again.hidden_1SD[:, -1], alone.hidden_1SD[:, -1])
    assert not torch.allclose(again.hidden_1SD[:, -1], first.hidden_1SD[:, -1], atol=1e-3)


def test_a_rewrite_and_the_choice_of_a_size_see_the_input_images(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    def seen(images: tuple[bytes, ...]) -> tuple[str, list[float]]:
        request = replace(edit, rewrite="recaption", images=images)
        *_, last = rewrite_prompts(instruct, request)
        (plain,) = _prompts(instruct, replace(edit, images=images))
        return last.text, instruct.ratio_logits(plain.prompt, plain.prompt_cache).tolist()

    text, logits = seen(edit.images)
    other_text, other_logits = seen((file("odd_rgba"),))
    assert text.startswith("<recaption>")
    assert text != other_text
    assert logits != other_logits


def test_align_stretches_the_input_and_gives_the_result_its_ratio(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    aligned = replace(edit, images=(file("alpha"),), width_px=304, height_px=208, align=True)
    (image,) = images_of(instruct, aligned)
    assert (image.width_px, image.height_px) == (317, 207)
    (image,) = images_of(instruct, replace(aligned, align=False))
    assert (image.width_px, image.height_px) == (304, 208)


def test_the_noise_of_the_input_images_is_one_stream_of_the_seed() -> None:
    first, second = posterior_noise(5, [(1, 8, 4, 4), (1, 8, 4, 4)])
    assert torch.equal(first, posterior_noise(5, [(1, 8, 4, 4)])[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, posterior_noise(6, [(1, 8, 4, 4)])[0])


def test_a_request_with_images_goes_through_a_pipe(edit: ImageRequest) -> None:
    assert pickle.loads(pickle.dumps(edit)) == edit
    assert "PNG" not in repr(edit)


def test_too_many_images_and_a_prompt_without_room_for_them_are_refused(
    instruct: Pipeline, edit: ImageRequest
) -> None:
    with pytest.raises(InputImageError, match="4 input images; at most 3"):
        images_of(instruct, replace(edit, images=edit.images * 4))
    with pytest.raises(InputImageError, match="input image 2"):
        images_of(instruct, replace(edit, images=(*edit.images, b"no image")))
    with pytest.raises(PromptTooLongError, match="22800"):
        images_of(instruct, replace(edit, prompt="fog " * 25_000))


def test_a_worker_that_has_not_loaded_the_tower_says_which_setting_does(
    edit: ImageRequest,
) -> None:
    settings = PipelineSettings(checkpoint=str(GOLDEN_CHECKPOINT))
    with pytest.raises(ImageInputsOffError, match=r"worker\.image_inputs"):
        images_of(load_pipeline(settings), edit)


def test_the_setting_loads_what_reads_images(edit: ImageRequest) -> None:
    settings = PipelineSettings(checkpoint=str(GOLDEN_CHECKPOINT), image_inputs=True)
    pipeline = load_pipeline(settings)
    assert pixels_of(pipeline, edit).shape == (240, 272, 3)


def test_a_request_without_images_encodes_none(instruct: Pipeline) -> None:
    inputs = load_input_images(instruct, (), is_stretched=False)
    assert inputs.grids == InputImages().grids == ()
    assert instruct.template.image_blocks(Prompt(text="a fox")) == ()


def _prompts(pipeline: Pipeline, request: ImageRequest) -> list[PreparedPrompt]:
    """Return the prompts of a request that writes no text."""
    with pytest.raises(StopIteration) as stopped:
        next(rewrite_prompts(pipeline, request))
    prompts: list[PreparedPrompt] = stopped.value.value
    return prompts
