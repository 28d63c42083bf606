"""Traces: a span per task and per stage in OpenTelemetry's form; without the extra `otel`, none.

The worker reports seconds, so its spans are made when it has: each ends when its report arrives.
"""

import asyncio
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from server.observing_settings import TracingSettings
from server.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# Headers of a W3C trace context. Those of the request that the current coroutine serves, which
# coroutines inherit, and those of a span, for outgoing requests.
Headers = Mapping[str, str]
incoming: ContextVar[Headers] = ContextVar("incoming_trace", default=MappingProxyType({}))

MAX_STATE_CHARS = 512
_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_NS = 1e9


class Trace:
    """A span of a task or a call, and the spans below it. Without a provider it does nothing."""

    def __init__(self, provider: "TracerProvider | None", span: "Span | None") -> None:
        self._provider = provider
        self._span = span
        self._open: dict[tuple[str, int], tuple[float, float]] = {}

    @property
    def headers(self) -> Headers:
        """The trace context that an outgoing request carries."""
        if self._span is None:
            return {}
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(self._span))
        return headers

    def add(self, name: str, started_at: float, ended_at: float, **attributes: int) -> None:
        """Add a span of a stage that is over."""
        if self._provider is None or self._span is None:
            return
        from opentelemetry.trace import set_span_in_context

        span = self._provider.get_tracer("hyimage").start_span(
            name,
            context=set_span_in_context(self._span),
            start_time=int(started_at * _NS),
            attributes={f"hyimage.{key}": value for key, value in attributes.items()},
        )
        span.end(int(ended_at * _NS))

    def extend(self, name: str, image: int, seconds: float) -> None:
        """Begin or extend the span of a stage in pieces; the newest took so many seconds."""
        now = time.time()
        started_at, _ = self._open.get((name, image), (now - seconds, now))
        self._open[name, image] = (started_at, now)

    def close(self, name: str, image: int) -> None:
        """End the span of a stage in pieces at its last piece."""
        if (times := self._open.pop((name, image), None)) is not None:
            self.add(name, *times, image=image)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add a span of what is run inside."""
        started_at = time.time()
        try:
            yield
        finally:
            self.add(name, started_at, time.time())

    def end(self, fault: str | None = None, **attributes: str | int) -> None:
        """End the span; `fault` is the code of what went wrong."""
        for name, image in list(self._open):
            self.close(name, image)
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        for key, value in attributes.items():
            self._span.set_attribute(f"hyimage.{key}", value)
        if fault is not None:
            self._span.set_status(StatusCode.ERROR, fault)
        self._span.end()


class Tracer:
    """Starts the spans of tasks and calls. Without a provider none is made."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider

    def start(
        self,
        name: str,
        parent: Headers,
        started_at: float | None = None,
        kind: Literal["INTERNAL", "SERVER", "CLIENT"] = "INTERNAL",
    ) -> Trace:
        """Return a span below the one that the headers name, or the first of a new trace."""
        if self._provider is None:
            return Trace(None, None)
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = self._provider.get_tracer("hyimage").start_span(
            name,
            context=TraceContextTextMapPropagator().extract(parent),
            kind=SpanKind[kind],
            start_time=None if started_at is None else int(started_at * _NS),
        )
        return Trace(self._provider, span)

    async def close(self) -> None:
        """Send the spans that are not sent yet."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)


def start_tracing(settings: TracingSettings) -> Tracer:
    """Return the tracer that the settings describe.

    Raises:
        SettingsError: it needs the extra `otel`, which is not installed.
    """
    if not settings.endpoint:
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise SettingsError(
            f"tracing.endpoint is {settings.endpoint!r}, and the extra otel is not installed; "
            "pip install '.[otel]', or leave the endpoint empty"
        ) from None
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "hyimage"}
    provider = TracerProvider(
        resource=Resource.create(named),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint)))
    return Tracer(provider)


def trace_headers(headers: Mapping[bytes, Any]) -> Headers:
    """Return the W3C trace context of a request's headers, nothing if it has no valid one."""
    parent = bytes(headers.get(b"traceparent", b"")).decode("latin-1")
    if _PARENT.fullmatch(parent) is None:
        return {}
    state = bytes(headers.get(b"tracestate", b"")).decode("latin-1")[:MAX_STATE_CHARS]
    return {"traceparent": parent} | ({"tracestate": state} if state else {})
