"""`hyimage prove` against a real server, and against one that takes another scheduler."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from tests.system.conftest import ServerProcess

RUNNER = CliRunner()


@pytest.fixture
def dishonest(shared_server: ServerProcess) -> Iterator[str]:
    """The address of a server that generates with another scheduler than the task names."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            tasks = json.loads(self.rfile.read(int(self.headers["content-length"])))
            changed = json.dumps([{**task, "scheduler": "Euler a"} for task in tasks]).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{shared_server.url}/v1", changed, headers)
            with urllib.request.urlopen(request, timeout=300) as response:
                body = response.read()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}"
    proxy.shutdown()
    proxy.server_close()


def test_an_honest_server_is_proved_and_another_scheduler_is_found_out(
    shared_server: ServerProcess, dishonest: str, tmp_path: Path
) -> None:
    recording, verdicts = tmp_path / "recording", tmp_path / "verdict.json"
    small = ["--num-prompts", "2", "--steps", "3", "--size", "256x256"]
    made = RUNNER.invoke(app, ["prove", shared_server.url, "--record", str(recording), *small])
    assert made.exit_code == 0, made.output

    honest = RUNNER.invoke(
        app, ["prove", f"{shared_server.url}/v1", str(recording), "--json", str(verdicts)]
    )
    assert honest.exit_code == 0, honest.output
    assert [v["judgement"] for v in json.loads(verdicts.read_text())] == ["equal", "equal"]

    found = RUNNER.invoke(app, ["prove", dishonest, str(recording), "--json", str(verdicts)])
    assert found.exit_code == 1, found.output
    judged = json.loads(verdicts.read_text())
    assert [v["judgement"] for v in judged] == ["different", "different"]
    assert all(v["psnr"] < 40 for v in judged)
    assert "0 of 2 images" in found.output
