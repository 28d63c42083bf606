"""Deployment settings: a TOML file, overridden by the environment, overridden by flags."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

_SECTION = ConfigDict(frozen=True, extra="forbid")


class SettingsError(ValueError):
    """A settings file, variable or flag is wrong; the message names it."""

    code = "invalidSettings"


class ServerSettings(BaseModel):
    """Where the server listens and what it says about itself."""

    model_config = _SECTION
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_url: str = Field("", description="Base of image URLs; empty: the request's own Host")
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    max_queued_images: int = Field(200, ge=1, description="Beyond this a request gets 429")


class WorkerSettings(BaseModel):
    """What the worker loads and how it holds it."""

    model_config = _SECTION
    checkpoint: str = Field("checkpoints/tiny-random", description="Folder with config.json")
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    num_threads: int = Field(0, ge=0, description="CPU threads; 0: as torch decides")
    max_active_jobs: int = Field(2, ge=1, description="Jobs whose steps are interleaved")


class ImageSettings(BaseModel):
    """Where finished images are kept for URL delivery."""

    model_config = _SECTION
    folder: str = "data/images"


class ApiSettings(BaseModel):
    """What requests get when they leave a parameter out."""

    model_config = _SECTION
    model: str = Field("runware:180@1", description="The model identifier that is answered to")
    default_size: str = Field("1024x1024", pattern=r"^\d+x\d+$", description="WIDTHxHEIGHT")


class Settings(BaseSettings):
    """All settings of one deployment.

    A variable is named after its section and field: HYIMAGE_SERVER__PORT=9000.
    """

    model_config = SettingsConfigDict(
        env_prefix="HYIMAGE_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )
    server: ServerSettings = ServerSettings()
    worker: WorkerSettings = WorkerSettings()
    images: ImageSettings = ImageSettings()
    api: ApiSettings = ApiSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which arrives as init values."""
        return env_settings, init_settings


def load_settings(file: Path | None, **flags: Any) -> Settings:
    """Return the settings of `file`, then the environment, then `flags` (section__field=value).

    Raises:
        SettingsError: the file is unreadable, or a value is unknown or out of range.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    except OSError as e:
        raise SettingsError(f"settings file {file} cannot be read: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise SettingsError(f"settings file {file} is not TOML: {e}") from None
    try:
        settings = Settings(**values)
        for name, value in flags.items():
            section, field = name.split("__")
            if value is not None:
                merged = {**getattr(settings, section).model_dump(), field: value}
                checked = type(getattr(settings, section)).model_validate(merged)
                settings = settings.model_copy(update={section: checked})
    except ValidationError as e:
        lines = [
            f"{'.'.join(map(str, x['loc']))}: {x['msg']} (got {x['input']!r})" for x in e.errors()
        ]
        raise SettingsError(
            f"settings from {file or 'flags and environment'}: {'; '.join(lines)}"
        ) from None
    return settings
