"""The Grafana dashboard and the alert rules name metrics, labels and values that exist."""

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from server.metrics import STAGES, Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
FUNCTIONS = {
    "by", "histogram_quantile", "ignoring", "increase", "max", "min", "on", "rate", "sum",
}  # fmt: skip
TARGET_LABELS = {"instance", "job"}  # Prometheus adds them to every series
CATALOG = Metrics().catalog
FRESH = Metrics().render().decode()


def panels() -> list[dict[str, Any]]:
    board = json.loads((DEPLOY / "grafana" / "hyimage.json").read_text(encoding="utf-8"))
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in groups["groups"] for rule in group["rules"]]


EXPRESSIONS = {
    **{f"panel {p['title']} {t['refId']}": t["expr"] for p in panels() for t in p["targets"]},
    **{f"alert {rule['alert']}": rule["expr"] for rule in rules()},
}


def series() -> dict[str, tuple[str, set[str]]]:
    """Return the names that a query may use, each with its metric and its labels."""
    names = {}
    for name, (kind, labels) in CATALOG.items():
        if kind == "histogram":
            for suffix, more in (("bucket", {"le"}), ("sum", set()), ("count", set())):
                names[f"{name}_{suffix}"] = (name, {*labels, *more})
        else:
            names[name] = (name, set(labels))
    return names


def matcher_faults(name: str, labels: set[str], matchers: str) -> Iterator[str]:
    """Yield what is wrong with what stands between the braces after a name."""
    for label, values in re.findall(r'(\w+)!?[=~]~?"(.*?)"', matchers):
        if label not in labels | TARGET_LABELS:
            yield f"{name} has no label {label}"
        elif label == "stage" and not set(values.split("|")) <= set(STAGES):
            yield f"no stages {values}"


def faults_of(expression: str) -> Iterator[str]:
    """Yield what is wrong with a query."""
    known = series()
    text = re.sub(r"\[(\d+[smh]|\$__rate_interval)\]", "", expression)
    for left, right in ("()", "{}"):
        if text.count(left) != text.count(right):
            yield f"{left} and {right} do not match"
    if set(re.findall(r"[\[\]]", text)):
        yield "a range is not understood"
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"(?:by|on|ignoring) \(([^)]*)\)", text))))
    used: set[str] = set()
    for name, matchers in re.findall(r"\b(hyimage_\w+)(?:\{(.*?)\})?", text):
        if name not in known:
            yield f"no metric {name}"
            continue
        used |= known[name][1]
        yield from matcher_faults(name, known[name][1], matchers)
    if unknown := grouped - used - TARGET_LABELS:
        yield f"no labels {unknown}"
    rest = re.sub(r"\{.*?\}|(?:by|on|ignoring) \([^)]*\)", "", text)
    words = set(re.findall(r"[a-z_]\w*", rest)) - set(known) - {"and", "or", "up"}
    if words - FUNCTIONS:
        yield f"unknown words {words - FUNCTIONS}"


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_query_names_what_exists(name: str) -> None:
    assert list(faults_of(EXPRESSIONS[name])) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(hyimage_image_total[5m])", "no metric hyimage_image_total"),
        ('hyimage_steps_total{stage="x"}', "hyimage_steps_total has no label stage"),
        ('hyimage_stage_seconds_sum{stage=~"step|stop"}', "no stages step|stop"),
        ("sum by (code) (hyimage_steps_total)", "no labels {'code'}"),
        ("rate(hyimage_steps_total[5m]", "( and ) do not match"),
        ("hyimage_task_seconds > 1", "no metric hyimage_task_seconds"),
        ("median(hyimage_ready)", "unknown words {'median'}"),
        ("rate(hyimage_steps_total[5 minutes])", "a range is not understood"),
    ],
)
def test_a_wrong_query_is_found(expression: str, fault: str) -> None:
    assert fault in list(faults_of(expression))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_says_how_bad_it_is_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "0m"))


def test_what_an_alert_counts_increases_from_a_zero() -> None:
    """A counter that first appears with 1 has not increased, for Prometheus."""
    counted = re.findall(
        r"increase\((\w+)(\{[^}]*\})?\[", "\n".join(rule["expr"] for rule in rules())
    )
    assert len(counted) > 3
    assert [
        s for s in counted if re.search(rf"^{re.escape(''.join(s))}.* 0\.0$", FRESH, re.M) is None
    ] == []


def test_settings_that_an_alert_names_exist() -> None:
    from server.settings import Settings

    text = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    named = re.findall(r"\b(server|worker)\.([a-z_]+)", text)
    assert named
    sections: Any = Settings()
    assert [f for s, f in named if f not in type(getattr(sections, s)).model_fields] == []


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


class FakePrometheus(BaseHTTPRequestHandler):
    """Answers every query with one series of three values."""

    queries: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        self.queries.append(asked["query"][0])
        start = float(asked["start"][0])
        values = [[start, "1"], [start + 5, "NaN"], [start + 10, "3"]]
        labels = {label: label.upper() for _, names in CATALOG.values() for label in names}
        body = {"data": {"result": [{"metric": labels, "values": values}]}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


def test_the_picture_asks_for_every_query_of_the_dashboard(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw", DEPLOY / "grafana" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakePrometheus)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    draw.draw_board(url, 1.0, tmp_path / "board.webp")
    found = draw.query(url, {"expr": "up", "legendFormat": "{{stage}} x"}, 0.0, 60.0)
    server.shutdown()
    server.server_close()
    assert found == {"STAGE x": {0.0: 1.0, 10.0: 3.0}}
    assert len(FakePrometheus.queries) == sum(len(p["targets"]) for p in panels()) + 1
    assert [query for query in FakePrometheus.queries if "$" in query] == []
    assert (tmp_path / "board.webp").stat().st_size > 1000
