"""A real server as its operator sees it: log lines of server and worker, and its metrics."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.system.conftest import ServerProcess


def task(**changes: Any) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:180@1",
        "positivePrompt": "a red circle",
        "width": 256,
        "height": 256,
        **changes,
    }


def samples_of(server: ServerProcess) -> dict[tuple[str, ...], float]:
    """Return the values of the page by name and label values."""
    families = text_string_to_metric_families(server.get("/metrics")[0].decode())
    return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}


def test_metrics_and_json_lines_of_a_task_agree_with_what_was_generated(
    server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path
) -> None:
    server = server_factory(tiny_checkpoint, HYIMAGE_LOGGING__FORMAT="json")
    server.start()
    sent = task(numberResults=2, steps=8, acceleration="high", seed=5)
    assert "errors" not in server.post(sent)
    values = samples_of(server)
    lines = [json.loads(line) for line in server.log().splitlines()]  # the worker's, too
    [ended] = [line for line in lines if line["message"] == "task"]
    computed = values["hyimage_steps_total", "computed"]
    reused = values["hyimage_steps_total", "reused"]
    assert (computed + reused, reused > 0) == (16, True)
    assert values["hyimage_evaluations_total", "computed"] == computed
    assert values["hyimage_evaluations_total", "reused"] == reused
    assert (ended["uuid"], ended["steps"], ended["reused"]) == (sent["taskUUID"], 16, reused)
    assert values["hyimage_worker_memory_bytes", "host", "resident"] > 50e6
    stages = sum(values["hyimage_stage_seconds_sum", s] for s in ("prefill", "step", "decode"))
    assert 0 < stages < values["hyimage_task_seconds_sum",]
    assert ended["step_s"] == round(values["hyimage_stage_seconds_sum", "step"], 3)
