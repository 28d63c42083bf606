"""Operation: health, readiness, metrics, request ids, imports."""

import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient

from tests.contract.conftest import FakeEngine, make_task


def test_health_and_readiness_are_told_apart(client: TestClient, engine: FakeEngine) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = {"ready": True, "worker": "fake", "maxInputImages": 0}
    assert client.get("/ready").json() == ready
    engine.status = type(engine.status)(is_ready=False, description="loading")
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200


def test_the_api_never_imports_torch() -> None:
    code = "import sys, server.app, server.engine.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_stranger_named_like_our_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "__init__.py").write_text("")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from server.import_guard import check_imports; check_imports()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False, capture_output=True
    )
    assert done.returncode == 1
    assert b"'cache' comes from" in done.stderr


def test_a_request_id_comes_back_or_is_made(client: TestClient) -> None:
    assert (
        client.get("/health", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    )
    made = [client.get("/health").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    forged = client.get("/health", headers={"X-Request-ID": "a b"}).headers["x-request-id"]
    assert " " not in forged


def test_metrics_count_images_and_refusals(client: TestClient) -> None:
    client.post("/v1", json=[make_task(numberResults=3), make_task(model="other")])
    page = client.get("/metrics").text
    assert "hyimage_images_total 3.0" in page
    assert 'hyimage_tasks_total{end="success"} 1.0' in page
    assert 'hyimage_refusals_total{code="invalidModel"} 1.0' in page
    assert "hyimage_ready 1.0" in page
