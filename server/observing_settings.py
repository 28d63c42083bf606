"""Settings of what an operator observes: the sections `[logging]` and `[tracing]`."""

from pydantic import BaseModel, ConfigDict, Field

from server.logs import Form, Level

_SECTION = ConfigDict(frozen=True, extra="forbid")


class LoggingSettings(BaseModel):
    """Lines on standard error: one per request and per task that has ended, and what goes wrong."""

    model_config = _SECTION
    level: Level = Field("info", description="debug shows probes, too")
    format: Form = Field("text", description="json: one object a line, for collectors")


class TracingSettings(BaseModel):
    """OpenTelemetry traces, with the extra `otel`; see docs/metrics.md."""

    model_config = _SECTION
    endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="OTLP over HTTP, as http://localhost:4318/v1/traces; empty: no traces",
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of traced tasks, where the caller leaves it open",
    )
