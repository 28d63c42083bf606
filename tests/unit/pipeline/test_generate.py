import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.attention import LayerKV
from model.errors import ModelError, PromptTooLongError, UnsupportedSizeError
from model.kv_cache import build_step_groups
from model.sequence import ImageSequence
from pipeline.denoise import Denoised, denoise, start_run
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.noise import image_noise
from schedulers.euler import Euler
from schedulers.sigmas import shifted_sigmas
from server.engine.messages import ImageDone, Job, JobDone, StepDone
from tests.rows import build_job_rows

SOLVER = Euler(tuple(shifted_sigmas(3, 3.0).tolist()))


def run(
    pipeline: Pipeline, rows: Sequence[ImageSequence], latent: Tensor, guidance: float = 5.0
) -> list[Denoised]:
    image = start_run(pipeline.transformer, rows, latent, SOLVER, guidance)
    return list(denoise(pipeline.transformer, [image]))


def noise(pipeline: Pipeline, seed: int, rows: Sequence[ImageSequence]) -> Tensor:
    channels = pipeline.transformer.config.vae.latent_channels
    return image_noise(seed, (1, channels, rows[0].grid_height, rows[0].grid_width))


def images(pipeline: Pipeline, job: Job) -> list[bytes]:
    return [e.encoded for e in generate(pipeline, job) if isinstance(e, ImageDone)]


def pixels(encoded: bytes) -> npt.NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(encoded)))


def test_events_count_every_step_of_every_image(tiny_pipeline: Pipeline, job: Job) -> None:
    events = list(generate(tiny_pipeline, replace(job, seeds=(1, 2))))
    steps = [(e.image, e.step, e.num_steps) for e in events if isinstance(e, StepDone)]
    assert steps == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]
    assert [e.seed for e in events if isinstance(e, ImageDone)] == [1, 2]
    assert isinstance(events[-1], JobDone)


def test_an_image_is_generated_again_to_the_byte_from_its_seed(
    tiny_pipeline: Pipeline, job: Job
) -> None:
    three = images(tiny_pipeline, replace(job, seeds=(7, 8, 9)))
    assert len(set(three)) == 3
    assert [images(tiny_pipeline, replace(job, seeds=(seed,)))[0] for seed in (7, 8, 9)] == three


@torch.inference_mode()
def test_an_image_is_the_same_alone_and_in_a_batch(tiny_pipeline: Pipeline, job: Job) -> None:
    jobs = [replace(job, prompt=p) for p in ("a red fox", "an old bridge in fog at dawn", "tea")]
    pairs = [build_job_rows(tiny_pipeline, j) for j in jobs]
    latents = [noise(tiny_pipeline, seed, pairs[0]) for seed in (1, 2, 3)]
    transformer = tiny_pipeline.transformer
    runs = [
        start_run(transformer, pair, latent, SOLVER, 5.0)
        for pair, latent in zip(pairs, latents, strict=True)
    ]
    together = list(denoise(transformer, runs))
    for i, (pair, latent) in enumerate(zip(pairs, latents, strict=True)):
        in_batch = [done for done in together if done.image == i]
        for batch, alone in zip(in_batch, run(tiny_pipeline, pair, latent), strict=True):
            torch.testing.assert_close(batch.latent_BCYX, alone.latent_BCYX, atol=1e-5, rtol=1e-5)


def test_images_of_different_sizes_are_refused_as_a_batch(
    tiny_pipeline: Pipeline, job: Job
) -> None:
    rows = build_job_rows(tiny_pipeline, job)
    wide = torch.zeros(1, tiny_pipeline.transformer.config.vae.latent_channels, 2, 8)
    runs = [
        start_run(tiny_pipeline.transformer, rows, latent, SOLVER, 5.0)
        for latent in (noise(tiny_pipeline, 1, rows), wide)
    ]
    with pytest.raises(ValueError, match="different sizes"):
        next(denoise(tiny_pipeline.transformer, runs))


def test_a_batch_setting_generates_the_same_images(tiny_pipeline: Pipeline, job: Job) -> None:
    three = replace(job, seeds=(7, 8, 9))
    events = list(generate(replace(tiny_pipeline, batch_size=2), three))
    assert [e.image for e in events if isinstance(e, ImageDone)] == [0, 1, 2]
    for batched, alone in zip(
        [e.encoded for e in events if isinstance(e, ImageDone)],
        images(tiny_pipeline, three),
        strict=True,
    ):
        difference = np.abs(pixels(batched).astype(int) - pixels(alone))
        assert difference.max() <= 1


@torch.inference_mode()
def test_poisoned_image_keys_and_values_change_nothing(tiny_pipeline: Pipeline, job: Job) -> None:
    """What a step leaves behind is overwritten with NaN before the next one."""

    rows = build_job_rows(tiny_pipeline, job)
    latent = noise(tiny_pipeline, 7, rows)
    expected = run(tiny_pipeline, rows, latent)[-1].latent_BCYX
    kept: list[LayerKV] = []
    groups = [replace(g, kept=kept) for g in build_step_groups(tiny_pipeline.transformer, rows)]
    x, sigmas = latent, torch.tensor(SOLVER.sigmas)
    timestep = sigmas[:-1] * 1000
    transformer = tiny_pipeline.transformer
    for step in range(3):
        for layer in kept:
            layer.k_BGSH.fill_(torch.nan)
            layer.v_BGSH.fill_(torch.nan)
        kept.clear()
        embedded = transformer.embed_step(x, timestep[step : step + 1]).repeat(2, 1, 1)
        hidden = transformer.run_layers(embedded, groups)
        assert len(kept) == 2 * len(transformer.model.layers)
        grid = (rows[0].grid_height, rows[0].grid_width)
        cond, uncond = transformer.predict_velocity(hidden, timestep[step].expand(2), grid).chunk(2)
        x = x + (SOLVER.sigmas[step + 1] - SOLVER.sigmas[step]) * (uncond + 5.0 * (cond - uncond))
    assert torch.equal(x, expected)


def test_guidance_of_one_generates_from_the_conditional_row_alone(
    tiny_pipeline: Pipeline, job: Job
) -> None:
    off = replace(job, guidance=1.0)
    assert len(build_job_rows(tiny_pipeline, off)) == 1
    with_negative = replace(off, negative_prompt="blue")
    assert images(tiny_pipeline, off) == images(tiny_pipeline, with_negative)


def test_a_negative_prompt_of_any_length_takes_the_unconditional_row(
    tiny_pipeline: Pipeline, job: Job
) -> None:
    for negative in ("no", "blurry, low detail, " * 20):
        conditional, other = build_job_rows(tiny_pipeline, replace(job, negative_prompt=negative))
        assert len(other.ids) - len(conditional.ids) == len(negative) - len(job.prompt)
    plain, negated = (images(tiny_pipeline, replace(job, negative_prompt=n)) for n in (None, "no"))
    assert plain != negated


def test_prompts_equal_as_negative_and_positive_cancel_guidance(
    tiny_pipeline: Pipeline, job: Job
) -> None:
    rows = build_job_rows(tiny_pipeline, replace(job, negative_prompt=job.prompt))
    latent = noise(tiny_pipeline, 7, rows)
    guided = run(tiny_pipeline, rows, latent, guidance=9.0)[-1].latent_BCYX
    plain = run(tiny_pipeline, rows[:1], latent, guidance=1.0)[-1].latent_BCYX
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


def test_closing_the_loop_stops_drawing(tiny_pipeline: Pipeline, job: Job) -> None:
    events = generate(tiny_pipeline, replace(job, num_steps=50))
    assert isinstance(next(events), StepDone)
    events.close()  # type: ignore[attr-defined]
    assert list(events) == []


@pytest.mark.parametrize(("width", "height"), [(512, 512), (256, 257), (0, 0)])
def test_an_untrained_size_is_refused(
    tiny_pipeline: Pipeline, job: Job, width: int, height: int
) -> None:
    with pytest.raises(UnsupportedSizeError, match=f"{width}x{height}"):
        list(generate(tiny_pipeline, replace(job, width_px=width, height_px=height)))


def test_a_prompt_longer_than_the_model_is_refused_with_the_count(
    tiny_pipeline: Pipeline, job: Job
) -> None:
    with pytest.raises(PromptTooLongError, match="22800"):
        list(generate(tiny_pipeline, replace(job, prompt="x" * 30000)))
    assert issubclass(PromptTooLongError, ModelError)


@pytest.mark.parametrize("size", [(384, 128), (320, 192), (128, 384)])
def test_images_have_the_size_asked_for(
    tiny_pipeline: Pipeline, job: Job, size: tuple[int, int]
) -> None:
    for image_format, name in (("PNG", "PNG"), ("JPG", "JPEG"), ("WEBP", "WEBP")):
        asked = replace(
            job, width_px=size[0], height_px=size[1], num_steps=1, image_format=image_format
        )
        with Image.open(io.BytesIO(images(tiny_pipeline, asked)[0])) as image:
            assert (image.size, image.format) == (size, name)
