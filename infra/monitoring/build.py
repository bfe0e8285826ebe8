"""Dashboards and alerts, said once: for Cloud Monitoring, for Grafana, and for Prometheus.

    python infra/monitoring/build.py

writes ``dashboard.json`` (Cloud Monitoring), ``grafana.json``, ``alerts.json`` (which Terraform
reads) and ``alerts.prometheus.yaml``. All queries are PromQL: Cloud Monitoring takes it for Google's
own metrics as well. What to do about an alert is its section of ``docs/runbooks.md``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNBOOKS = HERE.parents[1] / "docs" / "runbooks.md"

#: Google's metrics that are used, by the address of their list.
GOOGLE = {
    "https://cloud.google.com/monitoring/api/metrics_gcp_p_z#gcp-pubsub": (
        "pubsub_googleapis_com:subscription_num_undelivered_messages",
        "pubsub_googleapis_com:subscription_oldest_unacked_message_age",
        "pubsub_googleapis_com:subscription_ack_message_count",
        "pubsub_googleapis_com:subscription_push_request_count",
        "pubsub_googleapis_com:subscription_expired_ack_deadlines_count",
    ),
    "https://cloud.google.com/monitoring/api/metrics_gcp_d_h#gcp-firestore": (
        "firestore_googleapis_com:document_read_count",
        "firestore_googleapis_com:document_write_count",
        "firestore_googleapis_com:document_delete_count",
    ),
}
#: Metrics made of logs: name -> (Cloud Logging's filter, what it counts).
LOGS = {
    "gwi_errors": ("severity>=ERROR", "Lines of the workers with severity ERROR or above"),
    "gwi_lease_lost": (
        '(jsonPayload.message:"lost its lease" OR textPayload:"lost its lease")',
        "Attempts whose lock another worker took",
    ),
}
#: How PromQL calls those in Cloud Monitoring.
LOG_PREFIX = "logging_googleapis_com:user_"

DEPTH = "pubsub_googleapis_com:subscription_num_undelivered_messages"
OLDEST = "pubsub_googleapis_com:subscription_oldest_unacked_message_age"
QUEUE = '{subscription_id="$subscription"}'
DEAD = '{subscription_id="$dead"}'


@dataclass(frozen=True)
class Panel:
    title: str
    #: Legend -> query.
    queries: dict[str, str]
    #: Grafana's name of the unit.
    unit: str = "short"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (le, task) (rate({metric}_bucket[5m])))"


PANELS = (
    Panel("Waiting", {"queue": f"sum({DEPTH}{QUEUE})"}),
    Panel("Oldest message", {"queue": f"max({OLDEST}{QUEUE})"}, "s"),
    Panel(
        "Throughput by outcome",
        {"{{outcome}}": "sum by (outcome) (rate(gwi_tasks_total[5m]))"},
        "ops",
    ),
    Panel("Running now", {"jobs": "sum(gwi_in_flight)"}),
    Panel(
        "Failures by type",
        {"{{task}} {{error}}": "sum by (task, error) (rate(gwi_failures_total[5m]))"},
        "ops",
    ),
    Panel(
        "Waits for a lock or a limit, duplicates, retries",
        {
            "lock held": "sum(rate(gwi_contended_total[5m]))",
            "limit reached": "sum(rate(gwi_limited_total[5m]))",
            "duplicates": "sum(rate(gwi_duplicates_total[5m]))",
            "retries": "sum(rate(gwi_retried_total[5m]))",
        },
        "ops",
    ),
    Panel(
        "Leases lost",
        {
            "locks": "sum(increase(gwi_lease_lost_total[5m]))",
            "messages": "sum(increase(pubsub_googleapis_com:subscription_expired_ack_deadlines_count"
            f"{QUEUE}[5m]))",
        },
    ),
    Panel("Dead letters", {"waiting": f"sum({DEPTH}{DEAD})"}),
    Panel("Oldest dead letter", {"age": f"max({OLDEST}{DEAD})"}, "s"),
    Panel(
        "Late (from ETA to start)",
        {"{{task}} p95": _quantile(0.95, "gwi_late_seconds")},
        "s",
    ),
    Panel(
        "Delayed and started",
        {"{{task}}": "sum by (task) (rate(gwi_late_seconds_count[5m]))"},
        "ops",
    ),
    Panel(
        "Attempts",
        {
            "{{task}} p50": _quantile(0.5, "gwi_task_seconds"),
            "{{task}} p95": _quantile(0.95, "gwi_task_seconds"),
        },
        "s",
    ),
    Panel(
        "Steps",
        {
            "{{task}} p50": _quantile(0.5, "gwi_step_seconds"),
            "{{task}} p95": _quantile(0.95, "gwi_step_seconds"),
        },
        "s",
    ),
    Panel(
        "Calls to Google Cloud",
        {"{{rpc}}": "sum by (rpc) (rate(gwi_rpcs_total[5m]))"},
        "ops",
    ),
    Panel(
        "Calls for each task",
        {"all": "sum(rate(gwi_rpcs_total[5m])) / sum(rate(gwi_processed_total[5m]))"},
    ),
    Panel(
        "Firestore documents",
        {
            kind: f"sum(rate(firestore_googleapis_com:document_{kind}_count[5m]))"
            for kind in ("read", "write", "delete")
        },
        "ops",
    ),
    Panel(
        "Pushes by answer",
        {
            "{{response_class}}": "sum by (response_class) "
            f"(rate(pubsub_googleapis_com:subscription_push_request_count{QUEUE}[5m]))"
        },
        "ops",
    ),
    Panel(
        "Handed back, refused, cancelled",
        {
            "handed back": "sum(rate(gwi_handed_back_total[5m]))",
            "no place free": "sum(rate(gwi_busy_total[5m]))",
            "cancelled": "sum(rate(gwi_cancelled_total[5m]))",
        },
        "ops",
    ),
)


@dataclass(frozen=True)
class Alert:
    #: Also the heading of its runbook.
    name: str
    query: str
    #: Seconds that it has to hold.
    hold: int
    #: CRITICAL, ERROR or WARNING, as Cloud Monitoring has them.
    severity: str


ALERTS = (
    Alert("Jobs wait too long", f"max({OLDEST}{QUEUE}) > 600", 300, "ERROR"),
    Alert(
        "Nobody works",
        f"sum({DEPTH}{QUEUE}) > 0 unless "
        f"sum(rate(pubsub_googleapis_com:subscription_ack_message_count{QUEUE}[10m])) > 0",
        600,
        "CRITICAL",
    ),
    Alert("Dead letters arrive", f"sum({DEPTH}{DEAD}) > 0", 300, "WARNING"),
    # 31 days is the longest that Pub/Sub keeps a message.
    Alert("Dead letters will expire", f"max({OLDEST}{DEAD}) > {24 * 86400}", 300, "ERROR"),
    Alert(
        "Many jobs fail",
        "sum(rate(gwi_failed_total[15m])) / sum(rate(gwi_processed_total[15m])) > 0.1",
        900,
        "ERROR",
    ),
    Alert("Leases are lost", "sum(increase(gwi_lease_lost_total[15m])) > 5", 300, "WARNING"),
    Alert(
        "Jobs wait for locks",
        "sum(rate(gwi_contended_total[15m])) / sum(rate(gwi_processed_total[15m])) > 0.5",
        900,
        "WARNING",
    ),
    Alert("Delayed jobs are late", f"{_quantile(0.95, 'gwi_late_seconds')} > 60", 900, "WARNING"),
    Alert("Pushes are refused", "sum(increase(gwi_busy_total[15m])) > 100", 900, "WARNING"),
    Alert(
        "Calls without permission",
        "sum(increase(gwi_unauthenticated_total[15m])) > 10",
        300,
        "WARNING",
    ),
    Alert("Workers log errors", f"sum(increase({LOG_PREFIX}gwi_errors[15m])) > 0", 300, "WARNING"),
)


def runbook(alert: Alert) -> str:
    """Its section of docs/runbooks.md."""
    text = RUNBOOKS.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(alert.name)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise SystemExit(f"docs/runbooks.md has no section {alert.name!r}")
    return found[1].strip()


def cloud_monitoring() -> dict[str, Any]:
    tiles = []
    for n, panel in enumerate(PANELS):
        sets = [
            {
                "plotType": "LINE",
                "targetAxis": "Y1",
                "legendTemplate": re.sub(r"\{\{(\w+)\}\}", r"${\1}", legend),
                "timeSeriesQuery": {"prometheusQuery": query},
            }
            for legend, query in panel.queries.items()
        ]
        tiles.append(
            {
                "xPos": n % 3 * 16,
                "yPos": n // 3 * 12,
                "width": 16,
                "height": 12,
                "widget": {"title": panel.title, "xyChart": {"dataSets": sets}},
            }
        )
    return {
        "displayName": "gwi_celery",
        "mosaicLayout": {"columns": 48, "tiles": tiles},
    }


def grafana() -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": n + 1,
            "type": "timeseries",
            "title": panel.title,
            "datasource": source,
            "gridPos": {"x": n % 3 * 8, "y": n // 3 * 8, "w": 8, "h": 8},
            "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
            "targets": [
                {"refId": chr(65 + i), "datasource": source, "expr": query, "legendFormat": legend}
                for i, (legend, query) in enumerate(panel.queries.items())
            ],
        }
        for n, panel in enumerate(PANELS)
    ]
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {"name": "subscription", "type": "textbox", "query": "gwi-worker-push-sub"},
        {"name": "dead", "type": "textbox", "query": "gwi-worker-jobs-dead"},
    ]
    return {
        "uid": "gwi-celery",
        "title": "gwi_celery",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def alerts() -> list[dict[str, Any]]:
    return [
        {
            "name": alert.name,
            "query": alert.query,
            "hold": f"{alert.hold}s",
            "severity": alert.severity,
            "runbook": runbook(alert),
        }
        for alert in ALERTS
    ]


def prometheus() -> str:
    """Rules of Prometheus' alert manager. JSON is YAML too: nothing needs another library."""
    severities = {"CRITICAL": "critical", "ERROR": "page", "WARNING": "warn"}
    rules = [
        {
            "alert": "".join(word.capitalize() for word in alert.name.split()),
            "expr": alert.query.replace("$subscription", "gwi-worker-push-sub").replace(
                "$dead", "gwi-worker-jobs-dead"
            ),
            "for": f"{alert.hold}s",
            "labels": {"severity": severities[alert.severity]},
            "annotations": {"summary": alert.name, "runbook": runbook(alert)},
        }
        for alert in ALERTS
        if LOG_PREFIX not in alert.query  # Cloud Monitoring's own
    ]
    return json.dumps({"groups": [{"name": "gwi_celery", "rules": rules}]}, indent=1) + "\n"


def files() -> dict[str, str]:
    """File's name -> its text."""
    logs = [{"name": n, "filter": f, "description": d} for n, (f, d) in LOGS.items()]
    return {
        "dashboard.json": json.dumps(cloud_monitoring(), indent=1) + "\n",
        "grafana.json": json.dumps(grafana(), indent=1) + "\n",
        "alerts.json": json.dumps({"alerts": alerts(), "logs": logs}, indent=1) + "\n",
        "alerts.prometheus.yaml": prometheus(),
    }


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
