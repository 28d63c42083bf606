"""Sampling defaults of a checkpoint, from generation_config.json. Free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from model.config_file import read_json
from model.errors import ConfigError

TemplateName = Literal["pretrain", "instruct"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSampling:
    """Sampling parameters of text tokens."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationConfig:
    """The checkpoint's defaults for steps, guidance, template and text sampling."""

    flow_shift: float
    template: TemplateName
    num_steps: int
    guidance: float
    drop_think: bool
    text_sampling: TextSampling = TextSampling(temperature=0.6, top_k=1024, top_p=0.95)
    use_system_prompt: str = "None"


def load_generation_config(folder: Path) -> GenerationConfig:
    """Read generation_config.json of the checkpoint in `folder`.

    Raises:
        ConfigError: the file is missing or a value is not usable.
    """
    path = folder / "generation_config.json"
    raw = read_json(path, ConfigError)
    template = raw.get("sequence_template", "pretrain")
    if template not in ("pretrain", "instruct"):
        raise ConfigError(
            f"{path}: sequence_template is {template!r}; only pretrain and instruct are known"
        )
    return GenerationConfig(
        flow_shift=_positive(raw, "flow_shift", 1.0, path),
        template=cast(TemplateName, template),
        num_steps=int(_positive(raw, "diff_infer_steps", 50, path)),
        guidance=_positive(raw, "diff_guidance_scale", 5.0, path),
        drop_think=bool(raw.get("drop_think", False)),
        text_sampling=TextSampling(
            temperature=_positive(raw, "temperature", 0.6, path),
            top_k=int(_positive(raw, "top_k", 1024, path)),
            top_p=min(1.0, _positive(raw, "top_p", 0.95, path)),
        ),
        use_system_prompt=str(raw.get("use_system_prompt") or "None"),
    )


def _positive(raw: dict[str, Any], name: str, default: float, path: Path) -> float:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{path}: {name} is {value!r}, not a positive number")
    return float(value)
