"""Deployment settings: a TOML file, overridden by the environment, overridden by flags."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariableError

from pipeline.settings import PipelineSettings
from server.cluster_settings import ClusterSettings
from server.image_settings import ImageSettings
from server.input_settings import InputSettings
from server.observing_settings import LoggingSettings, TracingSettings
from server.price_settings import PriceSettings
from server.safety_settings import SafetySettings
from server.settings_faults import (
    describe_faults,
    describe_unreadable,
    unknown_variables,
)
from server.settings_file import place_data, read_settings_file

Durability = Literal["power", "process"]
PrivatePage = Literal["metrics", "docs", "ready"]

_SECTION = ConfigDict(frozen=True, extra="forbid")


class SettingsError(ValueError):
    """A settings file, variable or flag is wrong; the message names it."""

    code = "invalidSettings"


class ServerSettings(BaseModel):
    """Where the server listens, and its limits."""

    model_config = _SECTION
    host: str = Field(
        "127.0.0.1", description="Address to listen on; beyond loopback the server needs an API key"
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one")
    data_dir: str = Field(
        "data", description="Default folder of images, tasks and keys; data/ beside a settings file"
    )
    private: tuple[PrivatePage, ...] = Field(
        (), description="Pages that need a key; of /ready only its detail"
    )
    public_url: str = Field("", description="Base of image URLs; empty: the request's own Host")
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, description="Largest request body or WebSocket frame"
    )
    max_queued_images: int = Field(200, ge=1, description="Beyond this a request gets 429")
    max_connections: int = Field(1000, ge=1, description="Open WebSockets")
    max_connections_per_key: int = Field(200, ge=1, description="Open WebSockets of one API key")
    authentication_timeout_s: float = Field(
        10.0, gt=0, description="A WebSocket that has not authenticated by then is closed"
    )
    socket_idle_s: float = Field(120.0, gt=0, description="Then a silent WebSocket is closed")
    cancel_on_disconnect: Literal["openai", "always", "never"] = Field(
        "openai", description="Which form's synchronous tasks end when their client hangs up"
    )
    max_tasks_per_key: int = Field(100, ge=1, description="Running tasks of one API key")
    drain_s: float = Field(
        30.0, ge=0, description="How long SIGTERM lets running tasks finish before the server stops"
    )
    allow_unauthenticated: bool = Field(
        False, description="Listen beyond loopback although no API key is configured"
    )
    trust_proxy_headers: bool = Field(False, description="Take addresses from X-Forwarded-*")
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/*]+)$")], ...] = Field(
        (), description="Origins of web pages that may call the API, as https://a.example, or *"
    )


class CacheSettings(BaseModel):
    """What the acceleration parameters mean."""

    model_config = _SECTION
    fb_cache_threshold_meaning: Literal["documented", "original"] = Field(
        "documented", description="documented: lower reuses more; original: higher reuses more"
    )
    tea_signal: Literal["input", "schedule"] = Field(
        "input", description="schedule: TeaCache measures the noise level alone"
    )
    default_acceleration: Literal["none", "low", "medium", "high"] = Field(
        "none", description="Preset of tasks that give none; none computes every step"
    )
    low_tea_distance: float = Field(0.65, ge=0, le=1, description="TeaCache of acceleration low")
    medium_tea_distance: float = Field(
        1.0, ge=0, le=1, description="TeaCache of acceleration medium"
    )
    high_tea_distance: float = Field(1.0, ge=0, le=1, description="TeaCache of acceleration high")
    high_tea_relaxation: float = Field(
        1.8, ge=1, le=4, description="High's TeaCache allows this times as much below sigma 0.9"
    )


class TaskSettings(BaseModel):
    """Where tasks are stored, and for how long."""

    model_config = _SECTION
    database_url: str = Field(
        "sqlite:///data/tasks.db",
        description="SQLAlchemy URL of the task store: SQLite, or PostgreSQL as "
        "postgresql+psycopg://user@host/database",
    )
    durability: Durability = Field(
        "power",
        description="What an accepted task survives with SQLite: a power cut, or a process' death",
    )
    retention_s: int = Field(
        86400, ge=60, description="After this a task is deleted and its UUID is free again"
    )
    sweep_every_s: float = Field(5.0, gt=0, description="How often expired images are deleted")
    is_shared: bool = Field(
        False, description="Other servers use the same database and images; see docs/operating.md"
    )
    lease_s: float = Field(
        30.0, ge=1, description="How long a dead server's tasks wait before another generates them"
    )


class KeySettings(BaseModel):
    """API keys. Without any, everybody may generate, and the server stays on loopback."""

    model_config = _SECTION
    file: str = Field("data/keys.json", description="Hashed keys, written by `hyimage keys`")


class EgressSettings(BaseModel):
    """Webhooks, uploads, input images: which addresses the server may reach for a request."""

    model_config = _SECTION
    allowed_networks: tuple[str, ...] = Field(
        (), description="Private networks that may be reached, for example 10.1.0.0/16"
    )
    timeout_s: float = Field(30.0, gt=0, description="Of one try of an upload")
    upload_tries: int = Field(
        5, ge=1, description="After network errors, 408, 429 and 5xx; 0.25 s, 0.5 s, ... between"
    )
    webhook_timeout_s: float = Field(5.0, gt=0, description="Of one try of a webhook call")
    webhook_tries: int = Field(
        16, ge=1, description="Until 2xx; between them 0.25 s, doubling to 8 s"
    )
    webhook_body: Literal["envelope", "flat"] = Field(
        "envelope", description='envelope: {"data": [item]} or {"errors": [error]}; flat: the item'
    )


class ApiSettings(BaseModel):
    """The served model, and defaults of requests."""

    model_config = _SECTION
    model: str = Field("runware:180@1", description="The identifier of the served model")
    model_aliases: tuple[str, ...] = Field(
        ("tencent-hunyuanimage-3-0",), description="Other names of the served model"
    )
    openai_models: tuple[str, ...] = Field(
        ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"),
        description="Names that the OpenAI form takes for the served model; clients have them "
        "built in",
    )
    default_size: str = Field(
        "auto",
        pattern=r"^(auto|\d+x\d+)$",
        description="Size of tasks that give none: auto (the model chooses) or WIDTHxHEIGHT",
    )
    default_guidance: Literal["plain", "interval"] = Field(
        "plain", description="Guidance of tasks that give none; interval: as calibrated"
    )


class Settings(BaseSettings):
    """All settings of one deployment.

    A variable is named after its section and field: HYIMAGE_SERVER__PORT=9000.
    """

    model_config = SettingsConfigDict(
        env_prefix="HYIMAGE_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )
    server: ServerSettings = ServerSettings()
    worker: PipelineSettings = PipelineSettings()
    cache: CacheSettings = CacheSettings()
    images: ImageSettings = ImageSettings()
    inputs: InputSettings = InputSettings()
    tasks: TaskSettings = TaskSettings()
    cluster: ClusterSettings = ClusterSettings()
    keys: KeySettings = KeySettings()
    logging: LoggingSettings = LoggingSettings()
    tracing: TracingSettings = TracingSettings()
    price: PriceSettings = PriceSettings()
    safety: SafetySettings = SafetySettings()
    egress: EgressSettings = EgressSettings()
    api: ApiSettings = ApiSettings()

    @model_validator(mode="before")
    @classmethod
    def _place_data(cls, values: dict[str, Any]) -> dict[str, Any]:
        return place_data(values)

    def for_cluster(self) -> Self:
        """Return the same for servers that share their tasks, as those of a cluster do."""
        return self.model_copy(update={"tasks": self.tasks.model_copy(update={"is_shared": True})})

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
        values = read_settings_file(file) if file else {}
    except OSError as e:
        raise SettingsError(f"settings file {file} cannot be read: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise SettingsError(f"settings file {file} is not TOML: {e}") from None
    if unknown := unknown_variables(os.environ, _fields()):
        raise SettingsError(unknown)
    try:
        settings = Settings(**values)
    except ValidationError as e:
        faults = describe_faults(e.errors(), file or "the defaults", os.environ)
        raise SettingsError(faults) from None
    except UnreadableVariableError as e:  # a list or table that is not JSON
        raise SettingsError(describe_unreadable(str(e), os.environ)) from None
    for name, value in flags.items():
        if value is not None:
            settings = _with_flag(settings, name, value)
    return settings


def _with_flag(settings: Settings, name: str, value: Any) -> Settings:
    section, field = name.split("__")
    merged = {**getattr(settings, section).model_dump(), field: value}
    try:
        checked = type(getattr(settings, section)).model_validate(merged)
    except ValidationError as e:
        faults = "; ".join(fault["msg"] for fault in e.errors())
        raise SettingsError(f"--{field} {value!r} ({section}.{field}): {faults}") from None
    return settings.model_copy(update={section: checked})


def _fields() -> dict[str, Sequence[str]]:
    """Return the fields of each section."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: list(section.model_fields)
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel)
    }
