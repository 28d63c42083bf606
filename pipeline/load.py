"""The pipeline of one checkpoint: model, tokenizer, template, sizes, step cache calibration."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cache.calibration import (
    FILE_NAME,
    UNCALIBRATED,
    Calibration,
    CalibrationError,
    load_calibration,
)
from model.config import ModelConfig
from model.config_file import load_config
from model.errors import ConfigError
from model.generation_config import GenerationConfig, load_generation_config
from model.kv_cache import PromptKVCache
from model.loading.build import Progress, load_model
from model.loading.fingerprint import fingerprint
from model.loading.options import IMAGE_INPUT_PARTS, LoadOptions
from model.mesh import SINGLE, Mesh
from model.planning.devices import Devices
from model.planning.memory_plan import plan_rank
from model.planning.meta_step import MeshShape, Workload
from model.quantization.scheme import Scheme, resolve_scheme
from model.resolution import Size, list_offered_sizes, list_sizes
from model.sequence import ImageSequence, build_guidance_rows
from model.system_prompts import read_system_prompts
from model.template import Prompt, Template
from model.text_generation import ratio_logits
from model.tokenizer import Tokenizer
from model.transformer import HunyuanImage
from model.vae import to_uint8
from pipeline.device import prepare_device
from pipeline.input_image import MAX_IMAGES
from pipeline.preview import FILE_NAME as PREVIEW_FILE_NAME
from pipeline.preview import PreviewMap, load_preview_map
from pipeline.settings import PipelineSettings


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One loaded checkpoint. `scheme` names how its layers' weights are quantized, if they are."""

    transformer: HunyuanImage
    tokenizer: Tokenizer
    template: Template
    generation: GenerationConfig
    sizes: tuple[Size, ...]
    calibration: Calibration = UNCALIBRATED
    batch_size: int = 1
    scheme: str | None = None
    max_rewrite_tokens: int = 2048
    system_prompt: str = "auto"
    system_prompts: dict[str, str] = field(default_factory=dict)
    preview_map: PreviewMap | None = None

    @property
    def offered_sizes(self) -> tuple[Size, ...]:
        """Return the sizes that the API accepts."""
        return list_offered_sizes(self.transformer.config.image_base_size)

    def guidance_rows(
        self, prompt: Prompt, negative_prompt: str | None, size: Size
    ) -> tuple[ImageSequence, ImageSequence]:
        """Return the conditional and the unconditional row of one image.

        Raises:
            PromptTooLongError: a prompt and its image need more positions than the model has.
        """
        negative = None
        if negative_prompt is not None:
            negative = Prompt(
                text=negative_prompt, images=prompt.images, system_prompt=prompt.system_prompt
            )
        config = self.transformer.config
        return build_guidance_rows(self.template, self.tokenizer, prompt, negative, size, config)

    def rows(
        self, prompt: Prompt, negative_prompt: str | None, size: Size, guidance: float
    ) -> tuple[ImageSequence, ...]:
        """Return the rows that a denoising step runs: with guidance two, without it one.

        A guidance-distilled model needs no second row: its guidance is an input.

        Raises:
            PromptTooLongError: a prompt and its image need more positions than the model has.
        """
        pair = self.guidance_rows(prompt, negative_prompt, size)
        is_alone = guidance <= 1 or self.transformer.config.is_guidance_distilled
        return pair[:1] if is_alone else pair

    def latent_shape(self, size: Size) -> tuple[int, int, int, int]:
        """Return the shape of one image's latent: 1, C, Y, X."""
        config = self.transformer.config
        stride = config.pixels_per_token
        channels = config.vae.latent_channels
        return 1, channels, size.height_px // stride, size.width_px // stride

    @torch.inference_mode()
    def ratio_logits(self, prompt: Prompt, prompt_cache: PromptKVCache | None = None) -> Tensor:
        """Return the model's logits for each size of a prompt's image. Shapes: -> logits_Z."""
        return ratio_logits(
            self.transformer, self.tokenizer, self.template, prompt, len(self.sizes), prompt_cache
        )

    @torch.inference_mode()
    def decode(self, latent_BCYX: Tensor) -> Tensor:
        """Return the images of latents. Shapes: latent_BCYX -> rgb_Byx3 uint8."""
        transformer = self.transformer
        return to_uint8(transformer.vae.decode(latent_BCYX, transformer.mesh.whole))


def load_pipeline(
    settings: PipelineSettings,
    progress: Progress | None = None,
    skip: tuple[str, ...] | None = None,
    with_calibration: bool = True,
    mesh: Mesh = SINGLE,
) -> Pipeline:
    """Load the checkpoint that the settings name. Small files first, so that errors come early.

    `skip` names parts of the model that are checked but not held, by default those of input images
    unless the settings want them. Without calibration neither
    step_cache.json nor latent_preview.json is read.

    Raises:
        ModelError: anything about the checkpoint is wrong.
    """
    folder = Path(settings.checkpoint)
    config = load_config(folder)
    generation = load_generation_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    scheme = resolve_scheme(folder, settings.quantization).scheme
    calibration = _read_calibration(folder) if with_calibration else UNCALIBRATED
    preview_map = _read_preview_map(folder, config) if with_calibration else None
    system_prompts = read_system_prompts(folder)
    if skip is None:
        skip = () if settings.image_inputs else IMAGE_INPUT_PARTS
    options = build_options(settings, skip)
    if settings.device_memory_gb:
        # On a CPU oneDNN builds kernels for each number of tokens of an expert; a thousand of them,
        # its default cache, take 0.3 GB.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
        step_bytes = plan_step_memory(config, options, scheme, settings)
        options = replace(options, weights_bytes=int(settings.device_memory_gb * 1e9) - step_bytes)
    prepare_device(settings)
    transformer = load_model(folder, options, progress, mesh)
    return Pipeline(
        transformer=transformer,
        tokenizer=tokenizer,
        template=Template(tokenizer, generation.template, config.image_base_size),
        generation=generation,
        sizes=list_sizes(config.image_base_size, tokenizer.num_ratios),
        calibration=calibration,
        batch_size=settings.batch_size,
        scheme=None if scheme is None else scheme.name,
        max_rewrite_tokens=settings.max_rewrite_tokens,
        system_prompt=settings.system_prompt,
        system_prompts=system_prompts,
        preview_map=preview_map,
    )


def build_options(settings: PipelineSettings, skip: tuple[str, ...]) -> LoadOptions:
    """Return how the settings load a checkpoint, without the parts that `skip` names."""
    return LoadOptions(
        device=settings.layer_devices[0] if settings.layer_devices else settings.device,
        layer_devices=settings.layer_devices,
        dtype=getattr(torch, settings.weights_dtype),
        vae_dtype=getattr(torch, settings.decoder_dtype),
        quantization=settings.quantization,
        skip=skip,
        offload=settings.offload,
    )


def plan_step_memory(
    config: ModelConfig, options: LoadOptions, scheme: Scheme | None, settings: PipelineSettings
) -> int:
    """Return the bytes that generating needs beside the weights, at the largest size.

    With input images, as many and as large as a request may have.
    """
    workload = Workload(images=settings.batch_size, is_guided=not config.is_guidance_distilled)
    if settings.image_inputs:
        workload = replace(workload, input_images=MAX_IMAGES)
    plan = plan_rank(
        config,
        MeshShape(
            settings.cfg_parallel_size, settings.tensor_parallel_size, settings.expert_parallel
        ),
        Devices(count=1, memory_bytes=0),
        options,
        workload,
        scheme,
    )
    per_job = plan.prefix + plan.cache_residuals
    return plan.total - plan.parameters + per_job * (settings.max_active_jobs - 1)


def _read_calibration(folder: Path) -> Calibration:
    if not (folder / FILE_NAME).is_file():
        return UNCALIBRATED  # without reading the weights for their fingerprint
    try:
        return load_calibration(folder, fingerprint(folder))
    except CalibrationError as e:
        raise ConfigError(str(e)) from None


def _read_preview_map(folder: Path, config: ModelConfig) -> PreviewMap | None:
    if not (folder / PREVIEW_FILE_NAME).is_file():
        return None
    return load_preview_map(folder, fingerprint(folder), config.vae.latent_channels)
