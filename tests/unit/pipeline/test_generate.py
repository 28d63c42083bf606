from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.attention import LayerKV
from model.errors import ModelError, PromptTooLongError, UnsupportedSizeError
from model.kv_cache import build_step_groups
from model.sequence import ImageSequence
from pipeline.denoise import Denoised, denoise, start_run
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.noise import image_noise
from pipeline.request import ImageDone, ImageRequest, PromptPrefilled, StepDone
from schedulers.euler import Euler
from schedulers.sigmas import shifted_sigmas
from schedulers.trajectory import Trajectory
from tests.unit.pipeline.rows import request_rows

SOLVER = Euler(tuple(shifted_sigmas(3, 3.0).tolist()))


def run(
    pipeline: Pipeline, rows: Sequence[ImageSequence], latent: Tensor, guidance: float = 5.0
) -> list[Denoised]:
    image = start_run(pipeline.transformer, rows, Trajectory(SOLVER, latent), guidance)
    return list(denoise(pipeline.transformer, [image]))


def noise(pipeline: Pipeline, seed: int, rows: Sequence[ImageSequence]) -> Tensor:
    channels = pipeline.transformer.config.vae.latent_channels
    return image_noise(seed, (1, channels, rows[0].grid_height, rows[0].grid_width))


def images(pipeline: Pipeline, image_request: ImageRequest) -> list[bytes]:
    return [
        e.pixels_yx3.tobytes()
        for e in generate(pipeline, image_request)
        if isinstance(e, ImageDone)
    ]


def test_events_count_every_step_of_every_image(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    events = list(generate(tiny_pipeline, replace(image_request, seeds=(1, 2))))
    steps = [(e.image, e.step, e.num_steps) for e in events if isinstance(e, StepDone)]
    assert steps == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]
    assert [e.seed for e in events if isinstance(e, ImageDone)] == [1, 2]


def test_an_image_is_generated_again_to_the_byte_from_its_seed(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    three = images(tiny_pipeline, replace(image_request, seeds=(7, 8, 9)))
    assert len(set(three)) == 3
    assert [
        images(tiny_pipeline, replace(image_request, seeds=(seed,)))[0] for seed in (7, 8, 9)
    ] == three


@torch.inference_mode()
def test_an_image_is_the_same_alone_and_in_a_batch(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    requests = [
        replace(image_request, prompt=p)
        for p in ("a red fox", "an old bridge in fog at dawn", "tea")
    ]
    pairs = [request_rows(tiny_pipeline, r) for r in requests]
    latents = [noise(tiny_pipeline, seed, pairs[0]) for seed in (1, 2, 3)]
    transformer = tiny_pipeline.transformer
    runs = [
        start_run(transformer, pair, Trajectory(SOLVER, latent), 5.0)
        for pair, latent in zip(pairs, latents, strict=True)
    ]
    together = list(denoise(transformer, runs))
    for i, (pair, latent) in enumerate(zip(pairs, latents, strict=True)):
        in_batch = [done for done in together if done.image == i]
        for batch, alone in zip(in_batch, run(tiny_pipeline, pair, latent), strict=True):
            torch.testing.assert_close(batch.latent_BCYX, alone.latent_BCYX, atol=1e-5, rtol=1e-5)


def test_images_of_different_sizes_are_refused_as_a_batch(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    rows = request_rows(tiny_pipeline, image_request)
    wide = torch.zeros(1, tiny_pipeline.transformer.config.vae.latent_channels, 2, 8)
    runs = [
        start_run(tiny_pipeline.transformer, rows, Trajectory(SOLVER, latent), 5.0)
        for latent in (noise(tiny_pipeline, 1, rows), wide)
    ]
    with pytest.raises(ValueError, match="different sizes"):
        next(denoise(tiny_pipeline.transformer, runs))


def test_a_batch_setting_generates_the_same_images(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    three = replace(image_request, seeds=(7, 8, 9))
    events = list(generate(replace(tiny_pipeline, batch_size=2), three))
    assert [e.image for e in events if isinstance(e, ImageDone)] == [0, 1, 2]
    for batched, alone in zip(
        [e for e in events if isinstance(e, ImageDone)],
        [e for e in generate(tiny_pipeline, three) if isinstance(e, ImageDone)],
        strict=True,
    ):
        difference = np.abs(batched.pixels_yx3.astype(int) - alone.pixels_yx3)
        assert difference.max() <= 1


@torch.inference_mode()
def test_poisoned_image_keys_and_values_change_nothing(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    """What a step leaves behind is overwritten with NaN before the next one."""

    rows = request_rows(tiny_pipeline, image_request)
    latent = noise(tiny_pipeline, 7, rows)
    expected = run(tiny_pipeline, rows, latent)[-1].latent_BCYX
    groups = build_step_groups(tiny_pipeline.transformer, rows)
    new_kv: list[list[LayerKV]] = [[] for _ in groups]
    x, sigmas = latent, torch.tensor(SOLVER.sigmas)
    timestep = sigmas[:-1] * 1000
    transformer = tiny_pipeline.transformer
    for step in range(3):
        for layers in new_kv:
            for layer in layers:
                layer.k_BGSH.fill_(torch.nan)
                layer.v_BGSH.fill_(torch.nan)
            layers.clear()
        embedded = transformer.embed_step(x, timestep[step : step + 1]).repeat(2, 1, 1)
        hidden = transformer.run_layers(embedded, groups, new_kv=new_kv)
        assert [len(layers) for layers in new_kv] == 2 * [len(transformer.layers)]
        grid = (rows[0].grid_height, rows[0].grid_width)
        cond, uncond = transformer.predict_velocity(hidden, timestep[step].expand(2), grid).chunk(2)
        x = x + (SOLVER.sigmas[step + 1] - SOLVER.sigmas[step]) * (uncond + 5.0 * (cond - uncond))
    assert torch.equal(x, expected)


def test_guidance_of_one_generates_from_the_conditional_row_alone(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    off = replace(image_request, guidance=1.0)
    assert len(request_rows(tiny_pipeline, off)) == 1
    with_negative = replace(off, negative_prompt="blue")
    assert images(tiny_pipeline, off) == images(tiny_pipeline, with_negative)


def test_a_negative_prompt_of_any_length_takes_the_unconditional_row(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    for negative in ("no", "blurry, low detail, " * 20):
        conditional, other = request_rows(
            tiny_pipeline, replace(image_request, negative_prompt=negative)
        )
        assert len(other.ids) - len(conditional.ids) == len(negative) - len(image_request.prompt)
    plain, negated = (
        images(tiny_pipeline, replace(image_request, negative_prompt=n)) for n in (None, "no")
    )
    assert plain != negated


def test_prompts_equal_as_negative_and_positive_cancel_guidance(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    rows = request_rows(tiny_pipeline, replace(image_request, negative_prompt=image_request.prompt))
    latent = noise(tiny_pipeline, 7, rows)
    guided = run(tiny_pipeline, rows, latent, guidance=9.0)[-1].latent_BCYX
    plain = run(tiny_pipeline, rows[:1], latent, guidance=1.0)[-1].latent_BCYX
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


def test_closing_the_loop_stops_generating(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    events = generate(tiny_pipeline, replace(image_request, num_steps=50))
    assert isinstance(next(events), PromptPrefilled)
    assert isinstance(next(events), StepDone)
    events.close()
    assert list(events) == []


@pytest.mark.parametrize(("width", "height"), [(512, 512), (256, 257), (0, 0)])
def test_an_untrained_size_is_refused(
    tiny_pipeline: Pipeline, image_request: ImageRequest, width: int, height: int
) -> None:
    with pytest.raises(UnsupportedSizeError, match=f"{width}x{height}"):
        list(generate(tiny_pipeline, replace(image_request, width_px=width, height_px=height)))


def test_a_prompt_longer_than_the_model_is_refused_with_the_count(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    with pytest.raises(PromptTooLongError, match="22800"):
        list(generate(tiny_pipeline, replace(image_request, prompt="x" * 30000)))
    assert issubclass(PromptTooLongError, ModelError)


@pytest.mark.parametrize("size", [(384, 128), (320, 192), (128, 384)])
def test_images_have_the_size_asked_for(
    tiny_pipeline: Pipeline, image_request: ImageRequest, size: tuple[int, int]
) -> None:
    width, height = size
    asked = replace(image_request, width_px=width, height_px=height, num_steps=1)
    (image,) = (e for e in generate(tiny_pipeline, asked) if isinstance(e, ImageDone))
    assert image.pixels_yx3.shape == (height, width, 3)
    assert (image.width_px, image.height_px) == size
