"""/metrics: the same counts as /stats, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gwi_celery.telemetry.stats import BUCKETS, Stats, versions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: What each count means.
_HELP = {
    "processed": "Attempts at tasks that ended",
    "succeeded": "Tasks that succeeded",
    "failed": "Tasks that failed for good",
    "retried": "Attempts that ended in a retry",
    "duplicates": "Messages answered with a stored outcome",
    "contended": "Messages that waited because their lock was held",
    "limited": "Messages that waited because a limit had no free place",
    "handed_back": "Jobs handed back at a shutdown or before a push deadline",
    "lease_lost": "Attempts that lost their lease",
    "mismatches": "Messages whose key was used with another payload",
    "cancelled": "Jobs that an operator cancelled",
    "dead_lettered": "Messages kept in a dead letter",
    "acked": "Messages done with",
    "nacked": "Messages handed back to the broker",
    "unauthenticated": "Calls that were not let in",
    "busy": "Pushes refused because no place was free",
}


class _Collector:
    """Converts a Stats into metrics on each scrape."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
        )

        for name, value in self._stats.counts().items():
            yield CounterMetricFamily(f"gwi_{name}", _HELP[name], value=value)
        by_task = CounterMetricFamily(
            "gwi_tasks", "What became of tasks", labels=["task", "outcome"]
        )
        for (task, outcome), value in self._stats.by_task().items():
            by_task.add_metric([task, outcome], value)
        yield by_task
        failures = CounterMetricFamily(
            "gwi_failures", "Attempts that failed for good", labels=["task", "error"]
        )
        for (task, error), value in self._stats.errors().items():
            failures.add_metric([task, error], value)
        yield failures
        for name, help, found in (
            ("gwi_task_seconds", "How long attempts took", self._stats.durations()),
            ("gwi_step_seconds", "How long steps took, with their commit", self._stats.steps()),
            ("gwi_late_seconds", "From a task's ETA to its start", self._stats.late()),
        ):
            histogram = HistogramMetricFamily(name, help, labels=["task"])
            for task, (counts, total) in found.items():
                histogram.add_metric([task], _cumulative(counts), sum_value=total)
            yield histogram
        calls = CounterMetricFamily("gwi_rpcs", "Calls to Google Cloud", labels=["rpc"])
        for rpc, value in self._stats.rpcs().items():
            calls.add_metric([rpc], value)
        yield calls
        yield GaugeMetricFamily(
            "gwi_in_flight", "Tasks that run now", value=len(self._stats.running())
        )
        yield GaugeMetricFamily(
            "gwi_dead_letters_expiring",
            "Dead letters that are dropped within two days",
            value=self._stats.expiring,
        )
        yield GaugeMetricFamily(
            "gwi_start_time_seconds", "When this worker started", value=self._stats.started_at
        )
        yield InfoMetricFamily("gwi_build", "Versions", value=versions())


def render(stats: Stats) -> bytes:
    """The text of /metrics; without the extra ``metrics``, a line that says so."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        return b"# pip install 'gwi-celery[metrics]'\n"
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats))
    text: bytes = generate_latest(registry)
    return text


def _cumulative(counts: list[int]) -> list[tuple[str, int]]:
    bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
    total = 0
    buckets = []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
