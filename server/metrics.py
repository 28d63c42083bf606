"""Counters, gauges and timings in Prometheus' format; docs/metrics.md says what each means.

Labels have few values: stages, codes, routes, status classes, devices. Never a key, a UUID, or a
path as it was sent.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Stage = Literal[
    "text", "prefill", "step", "decode", "encode", "store", "check", "upload", "webhook"
]  # fmt: skip
STAGES: tuple[Stage, ...] = get_args(Stage)
Kind = Literal["computed", "reused"]

_TASK_SECONDS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_STAGE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_STORE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


# Type and labels by name.
WORKER_CATALOG = {
    "hyimage_worker_deaths_total": ("counter", ()),
    "hyimage_worker_memory_bytes": ("gauge", ("device", "kind")),
}


class WorkerCollector(Collector):
    """What the engine measures of its worker; `update` before a page is rendered."""

    def __init__(self) -> None:
        self._num_deaths = 0
        self._memory: Mapping[tuple[str, str], int] = {}

    def update(self, num_deaths: int, memory: Mapping[tuple[str, str], int]) -> None:
        """Take the present figures; `memory` is bytes by device and kind."""
        self._num_deaths, self._memory = num_deaths, memory

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the present figures."""
        deaths = "Worker processes that died, or were killed as stalled"
        yield CounterMetricFamily("hyimage_worker_deaths", deaths, value=self._num_deaths)
        memory = GaugeMetricFamily(
            "hyimage_worker_memory_bytes",
            "Memory of the worker's devices and of its process",
            labels=("device", "kind"),
        )
        for device_and_kind, size_bytes in self._memory.items():
            memory.add_metric(device_and_kind, size_bytes)
        yield memory


class Metrics:
    """One registry per server, so that several can live in one process.

    `catalog` has type and labels of each metric by its name.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.catalog: dict[str, tuple[str, tuple[str, ...]]] = dict(WORKER_CATALOG)
        self.worker = WorkerCollector()
        self._registry.register(self.worker)
        ProcessCollector(registry=self._registry)
        self._add_task_metrics()
        self._add_generation_metrics()
        self._add_transport_metrics()
        self._add_storage_metrics()

    def render(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self._registry)

    def _add_task_metrics(self) -> None:
        self.tasks = self._counter("tasks_total", "Tasks by how they ended", "end")
        for end in ("success", "taskCancelled", "inferenceError", "outOfMemory"):
            self.tasks.labels(end)  # an increase needs a zero before the first
        self.refusals = self._counter("refusals_total", "Tasks refused at admission", "code")
        self.errors = self._counter("errors_total", "Errors answered to clients", "code")
        self.task_seconds = self._histogram(
            "task_seconds", "From acceptance to end of a successful task", _TASK_SECONDS
        )
        self.queue_wait_seconds = self._histogram(
            "queue_wait_seconds", "From acceptance of a task to its start", _TASK_SECONDS
        )
        self.queued = self._gauge("queued_tasks", "Tasks accepted that wait for the worker")
        self.running = self._gauge("running_tasks", "Tasks that are being generated")
        self.unfinished_images = self._gauge(
            "unfinished_images", "Images of all tasks that have not ended"
        )
        self.images_limit = self._gauge(
            "unfinished_images_limit", "Beyond so many unfinished images a task gets 429"
        )
        self.ready = self._gauge("ready", "1 if images can be generated")

    def _add_generation_metrics(self) -> None:
        self.images = self._counter("images_total", "Images generated and stored")
        self.megapixels = self._counter("megapixels_total", "Their pixels, in millions")
        self.steps = self._counter("steps_total", "Denoising steps", "kind")
        self.evaluations = self._counter(
            "evaluations_total", "Evaluations of the velocity for finished images", "kind"
        )
        for kind in get_args(Kind):
            self.steps.labels(kind)
            self.evaluations.labels(kind)
        self.stage_seconds = self._histogram(
            "stage_seconds", "Seconds of a stage of a task", _STAGE_SECONDS, "stage"
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)

    def _add_transport_metrics(self) -> None:
        self.requests = self._counter(
            "http_requests_total", "HTTP requests by route and class of status", "route", "status"
        )
        self.request_seconds = self._histogram(
            "http_request_seconds", "From an HTTP request to its answer", _TASK_SECONDS, "route"
        )
        self.sockets = self._gauge("websocket_sessions", "Connected WebSockets")
        self.frames = self._counter(
            "websocket_frames_total", "Frames of WebSockets by direction", "direction"
        )
        self.closes = self._counter(
            "websocket_closes_total", "WebSockets that ended, by close code", "code"
        )

    def _add_storage_metrics(self) -> None:
        self.store_seconds = self._histogram(
            "store_seconds", "One call of the task store", _STORE_SECONDS, "operation"
        )
        self.store_faults = self._counter(
            "store_faults_total", "Calls of the task store that failed", "operation"
        )
        for operation in ("read", "write"):
            self.store_faults.labels(operation)
        self.webhook_backlog = self._gauge("webhook_backlog", "Webhook calls that are not made yet")
        self.webhook_tries = self._counter(
            "webhook_tries_total", "Tries of webhook calls by outcome", "outcome"
        )
        self.webhooks_given_up = self._counter(
            "webhooks_given_up_total", "Webhook calls that failed too often"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self.catalog[f"hyimage_{name}"] = ("counter", labels)
        return Counter(f"hyimage_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        self.catalog[f"hyimage_{name}"] = ("gauge", ())
        return Gauge(f"hyimage_{name}", text, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        self.catalog[f"hyimage_{name}"] = ("histogram", labels)
        return Histogram(f"hyimage_{name}", text, labels, buckets=buckets, registry=self._registry)
