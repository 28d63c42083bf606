"""docs/metrics.md lists the metrics of the registry, no more and no less."""

import re
from pathlib import Path

from server.metrics import STAGES, Metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return type and labels of each metric that the page lists."""
    row = re.compile(r"^\| `(hyimage_\w+)` \| (\w+) \| (.*?) ?\| ", re.M)
    return {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in row.findall(PAGE.read_text(encoding="utf-8"))
    }


def test_the_page_lists_every_metric_with_its_type_and_labels() -> None:
    assert documented() == Metrics().catalog


def test_the_catalog_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    types = re.findall(r"^# TYPE (hyimage_\w+) (\w+)", metrics.render().decode(), re.M)
    shown = {name: kind for name, kind in types if not name.endswith("_created")}
    assert shown == {name: kind for name, (kind, _) in metrics.catalog.items()}


def test_the_page_lists_every_stage() -> None:
    text = PAGE.read_text(encoding="utf-8").split("| stage |")[1].split("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.M)) == STAGES
