"""infra/monitoring: its files are as build.py makes them, and each metric that they name is exported."""

from __future__ import annotations

import json
import re
import runpy
import time
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gwi_celery.telemetry.events import Event
from gwi_celery.telemetry.metrics import render
from gwi_celery.telemetry.stats import Stats
from tests.workers import ROOT

HERE = ROOT / "infra" / "monitoring"


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    return runpy.run_path(str(HERE / "build.py"))


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Metric -> its labels, as /metrics has them once something of each kind has happened."""
    stats = Stats()
    for name, facts in [
        ("started", {"task": "t", "late": 1.0}),
        ("step", {"seconds": 0.1}),
        ("failed", {"task": "t", "error": "ValueError"}),
        ("ended", {"task": "t", "state": "FAILURE", "rpcs": {"Commit": 2}}),
    ]:
        stats(Event(name, 1, "id", time.time(), facts))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(render(stats).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries(build: dict[str, Any]) -> list[str]:
    return [query for panel in build["PANELS"] for query in panel.queries.values()] + [
        alert.query for alert in build["ALERTS"]
    ]


def test_the_files_are_as_they_are_made(build: dict[str, Any]) -> None:
    for name, text in build["files"]().items():
        assert (HERE / name).read_text() == text, f"run python infra/monitoring/build.py ({name})"


def test_each_metric_is_exported(build: dict[str, Any], exported: dict[str, set[str]]) -> None:
    google = {metric for metrics in build["GOOGLE"].values() for metric in metrics}
    logs = {build["LOG_PREFIX"] + name for name in build["LOGS"]}
    used = set()
    for query in queries(build):
        for metric in re.findall(r"\b(\w+:\w+|gwi_\w+)", query):
            assert metric in exported or metric in google | logs, f"{metric} in {query}"
            used.add(metric)
        ours = [exported[m] for m in re.findall(r"\bgwi_\w+", query) if m in exported]
        for labels in re.findall(r"by \(([\w, ]+)\)", query):
            for label in labels.split(", "):
                if ours:
                    assert label in ours[0], f"{label} in {query}"
    assert google <= used, "what is listed is used"


def test_metrics_of_logs_count_lines_that_are_written(build: dict[str, Any]) -> None:
    code = "".join(path.read_text() for path in (ROOT / "gwi_celery").rglob("*.py"))
    for filter, _ in build["LOGS"].values():
        for phrase in re.findall(r':"([^"]+)"', filter):
            assert phrase in code, phrase


def test_what_was_asked_for_has_a_panel(build: dict[str, Any]) -> None:
    titles = " ".join(panel.title for panel in build["PANELS"]).lower()
    asked = (
        "waiting, oldest message, throughput, failures by type, wait, leases lost, dead letters, "
        "oldest dead letter, late, delayed, steps, calls to google cloud"
    )
    for word in asked.split(", "):
        assert word in titles


def test_each_alert_has_a_runbook_and_each_runbook_an_alert(build: dict[str, Any]) -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert sections == [alert.name for alert in build["ALERTS"]]


def test_both_dashboards_have_the_same_panels(build: dict[str, Any]) -> None:
    cloud = json.loads((HERE / "dashboard.json").read_text())["mosaicLayout"]
    grafana = json.loads((HERE / "grafana.json").read_text())
    tiles = [tile["widget"] for tile in cloud["tiles"]]
    assert [t["title"] for t in tiles] == [p["title"] for p in grafana["panels"]]
    for tile, panel in zip(tiles, grafana["panels"], strict=True):
        asked = [s["timeSeriesQuery"]["prometheusQuery"] for s in tile["xyChart"]["dataSets"]]
        assert asked == [target["expr"] for target in panel["targets"]]
    places = {(tile["xPos"], tile["yPos"]) for tile in cloud["tiles"]}
    assert len(places) == len(tiles), "no two at one place"
    assert all(tile["xPos"] + tile["width"] <= cloud["columns"] for tile in cloud["tiles"])


def test_prometheus_takes_the_rules() -> None:
    rules = yaml.safe_load((HERE / "alerts.prometheus.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
        assert "$subscription" not in rule["expr"]
        assert rule["annotations"]["runbook"]
