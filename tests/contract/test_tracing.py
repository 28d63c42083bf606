"""Traces of tasks: spans, the context that comes in, and the one that goes out."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.app import create_app
from server.observing_settings import TracingSettings
from server.settings import Settings, SettingsError
from server.tracing import Tracer, start_tracing, trace_headers
from tests.contract.conftest import FakeEngine, change, make_task
from tests.contract.measured_engine import MeasuredEngine
from tests.listener import Listener
from tests.waiting import wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Traced:
    """A server whose spans are kept."""

    def __init__(self, settings: Settings, engine: FakeEngine) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        app: Any = create_app(settings, engine, tracer=Tracer(provider))
        self.client = TestClient(app)

    def wait_for(self, name: str) -> ReadableSpan:
        """Return the last span of a name, once there is one."""
        wait_until(lambda: any(span.name == name for span in self.exporter.get_finished_spans()))
        return [span for span in self.exporter.get_finished_spans() if span.name == name][-1]


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def seconds_of(span: ReadableSpan) -> float:
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_task_has_a_span_below_the_callers_and_one_for_each_stage(settings: Settings) -> None:
    traced, sent = Traced(settings, MeasuredEngine()), make_task(numberResults=2, steps=3)
    with traced.client as client:
        client.post("/v1", json=[sent], headers={"traceparent": PARENT})
    task = traced.wait_for("task")
    assert task.parent is not None
    assert f"{task.parent.trace_id:032x}" == TRACE
    spans = traced.exporter.get_finished_spans()
    below = [
        span.name for span in spans if span.parent and span.parent.span_id == task.context.span_id
    ]
    assert sorted(below) == sorted(
        ["queue", "store"]
        + 2 * ["text", "prefill", "denoise", "decode", "encode", "store", "store"]
    )
    assert task.attributes == {
        "hyimage.task_uuid": sent["taskUUID"], "hyimage.images": 2, "hyimage.steps": 6,
        "hyimage.steps_reused": 2,
    }  # fmt: skip
    assert task.status.is_unset


@pytest.mark.parametrize(("name", "seconds"), [("prefill", 0.25), ("decode", 0.125)])
def test_a_stage_lasts_as_long_as_the_worker_reports(
    settings: Settings, name: str, seconds: float
) -> None:
    traced = Traced(settings, MeasuredEngine())
    with traced.client as client:
        client.post("/v1", json=[make_task(steps=3)])
    assert seconds_of(traced.wait_for(name)) == pytest.approx(seconds, abs=1e-5)
    assert seconds_of(traced.wait_for("denoise")) >= 0.5  # from the start of the first step


def test_a_task_without_a_callers_trace_begins_one_and_a_failure_has_its_code(
    settings: Settings, engine: FakeEngine
) -> None:
    engine.failure = ("inferenceError", "died")
    traced = Traced(settings, engine)
    with traced.client as client:
        client.post("/v1", json=[make_task()], headers={"traceparent": "00-bad"})
    task = traced.wait_for("task")
    assert task.parent is None
    assert (task.status.status_code.name, task.status.description) == ("ERROR", "inferenceError")


def test_uploads_and_webhooks_carry_the_trace_on(
    settings: Settings, engine: FakeEngine, listener: Listener
) -> None:
    settings = change(settings, egress__allowed_networks=("127.0.0.0/8",))
    traced = Traced(settings, engine)
    url = listener.url
    sent = make_task(webhookURL=url, uploadEndpoint=f"{url}/put", deliveryMethod="async")
    with traced.client as client:
        headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
        client.post("/v1", json=[sent], headers=headers)
        listener.wait_for(2)
        webhook = traced.wait_for("webhook")
    upload, call = (one["traceparent"].split("-") for one in listener.headers)
    task = traced.wait_for("task")
    assert [one["tracestate"] for one in listener.headers] == ["vendor=1", "vendor=1"]
    assert upload[1:3] == [TRACE, f"{task.context.span_id:016x}"]
    assert call[1:3] == [TRACE, f"{webhook.context.span_id:016x}"]
    assert webhook.parent is not None
    assert webhook.parent.span_id == task.context.span_id


def test_without_tracing_nothing_goes_out(
    settings: Settings, engine: FakeEngine, listener: Listener
) -> None:
    settings = change(settings, egress__allowed_networks=("127.0.0.0/8",))
    app: Any = create_app(settings, engine)
    with TestClient(app) as client:
        sent = make_task(webhookURL=listener.url, deliveryMethod="async")
        client.post("/v1", json=[sent], headers={"traceparent": PARENT})
        listener.wait_for(1)
    assert [name for name in listener.headers[0] if name.startswith("trace")] == []


@pytest.mark.parametrize(
    "parent",
    [b"", b"00", PARENT.encode().upper(), f"{PARENT}\n".encode(), f"00-{TRACE}-1-01".encode()],
)
def test_what_is_no_trace_context_is_left_out(parent: bytes) -> None:
    assert trace_headers({b"traceparent": parent, b"tracestate": b"a=1"}) == {}


def test_an_endpoint_without_the_extra_is_refused_by_name() -> None:
    assert start_tracing(TracingSettings()).start("task", {}).headers == {}
    settings = TracingSettings(endpoint="http://localhost:4318/v1/traces")
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match="the extra otel is not installed"):
            start_tracing(settings)
    else:
        assert start_tracing(settings).start("task", {}).headers["traceparent"]


@pytest.mark.parametrize("path", ["/v1", "/v1/images/generations"])
def test_a_synchronous_answer_says_what_each_stage_took(settings: Settings, path: str) -> None:
    app: Any = create_app(settings, MeasuredEngine())
    with TestClient(app) as client:
        openai = {"prompt": "a fox", "n": 2, "response_format": "b64_json"}
        body = [make_task(steps=3), make_task(steps=3)] if path == "/v1" else openai
        header = client.post(path, json=body).headers["server-timing"]
    values = dict(part.split(";dur=") for part in header.split(", "))
    assert list(values) == ["queue", "text", "prefill", "step", "decode", "encode", "store"]
    assert (values["text"], values["prefill"], values["decode"]) == ("6000.0", "500.0", "250.0")


def test_answers_that_wait_for_no_task_have_no_timing(client: TestClient) -> None:
    for body in ({"taskType": "ping"}, make_task(deliveryMethod="async")):
        assert "server-timing" not in client.post("/v1", json=[body]).headers
