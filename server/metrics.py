"""Counters and timings in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """One registry per server, so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.tasks = Counter(
            "hyimage_tasks_total", "Tasks by how they ended", ["end"], registry=self._registry
        )
        self.refusals = Counter(
            "hyimage_refusals_total", "Refused tasks by code", ["code"], registry=self._registry
        )
        self.images = Counter("hyimage_images_total", "Images generated", registry=self._registry)
        self.steps = Counter("hyimage_steps_total", "Denoising steps", registry=self._registry)
        self.running = Gauge(
            "hyimage_running_tasks", "Tasks accepted and not ended", registry=self._registry
        )
        self.sockets = Gauge(
            "hyimage_websocket_sessions", "Connected WebSockets", registry=self._registry
        )
        self.task_seconds = Histogram(
            "hyimage_task_seconds",
            "From acceptance to end of a successful task",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.ready = Gauge("hyimage_ready", "1 if images can be generated", registry=self._registry)

    def render(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self._registry)
