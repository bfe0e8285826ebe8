"""Counts, and what is running now: the one place behind /stats and /metrics."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import celery
import kombu

from gwi_celery import forks
from gwi_celery._version import __version__
from gwi_celery.gcp import rpcs
from gwi_celery.telemetry.events import Event

#: Upper bounds of the durations counted, seconds.
BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0)

#: Kinds of errors counted for each task; further kinds count as OTHER.
_ERRORS = 50
OTHER = "other"

#: State of a task that ended -> its count.
_STATES = {"SUCCESS": "succeeded", "FAILURE": "failed", "RETRY": "retried"}

#: Event -> its count.
_EVENTS = {
    "duplicate": "duplicates",
    "contended": "contended",
    "limited": "limited",
    "stopping": "handed_back",
    "lease lost": "lease_lost",
    "mismatch": "mismatches",
    "cancelled": "cancelled",
    "dead-lettered": "dead_lettered",
    "acked": "acked",
    "nacked": "nacked",
    "unauthenticated": "unauthenticated",
    "busy": "busy",
}

#: Every count there is, so that one that never happened shows as 0.
COUNTS = ("processed", *_STATES.values(), *_EVENTS.values())


@dataclass
class RunningTask:
    """A task that runs now."""

    task: str
    pid: int
    task_id: str
    started_at: float
    facts: dict[str, Any] = field(default_factory=dict)


class Durations:
    """Counts by task and by length."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def add(self, task: str, seconds: float) -> None:
        counts = self._counts.setdefault(task, [0] * (len(BUCKETS) + 1))
        place = next((i for i, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        counts[place] += 1
        self._seconds[task] = self._seconds.get(task, 0.0) + seconds

    def all(self) -> dict[str, tuple[list[int], float]]:
        return {task: (list(c), self._seconds[task]) for task, c in self._counts.items()}


class Stats:
    """Fed with events. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._counts: Counter[str] = Counter()
        self._running: dict[tuple[int, str], RunningTask] = {}
        #: (task, outcome) -> how many.
        self._by_task: Counter[tuple[str, str]] = Counter()
        self._attempts = Durations()
        self._steps = Durations()
        self._late = Durations()
        #: (task, the error's class) -> how many.
        self._errors: Counter[tuple[str, str]] = Counter()
        #: Of pool children; this process counts its own.
        self._rpcs: Counter[str] = Counter()
        self.started_at = time.time()
        #: Dead letters that are about to be dropped, by this worker's last search.
        self.expiring = 0

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._count(event)

    def _count(self, event: Event) -> None:
        key = (event.pid, event.task_id or "")
        job = self._running.get(key)
        if event.name == "started":
            self._running[key] = RunningTask(event.facts["task"], *key, event.at)
            if (late := event.facts.get("late")) is not None:
                self._late.add(event.facts["task"], late)
        elif event.name == "step" and job is not None:
            self._steps.add(job.task, event.facts["seconds"])
        elif event.name == "dead letters expiring":
            self.expiring = event.facts["count"]
        elif event.name == "failed":
            self._errors[self._kind(event.facts["task"], event.facts["error"])] += 1
        elif event.name == "claimed" and job is not None:
            job.facts.update(event.facts)
        elif event.name == "checkpoint" and job is not None:
            job.facts.update(last_checkpoint=event.facts.get("checkpoint"), checkpoint_at=event.at)
        elif event.name == "ended":
            self._counts["processed"] += 1
            self._rpcs.update(event.facts.get("rpcs") or {})
            outcome = _STATES.get(event.facts.get("state") or "")
            if outcome == "succeeded" and job is not None and job.facts.get("duplicate"):
                outcome = None  # counted as a duplicate
            if outcome is not None:
                self._counts[outcome] += 1
                self._by_task[event.facts["task"], outcome] += 1
            if self._running.pop(key, None) is not None and job is not None:
                self._attempts.add(job.task, event.at - job.started_at)
        elif event.name in _EVENTS:
            count = _EVENTS[event.name]
            self._counts[count] += 1
            if job is not None:
                self._by_task[job.task, count] += 1
                if event.name == "duplicate":
                    job.facts["duplicate"] = True

    def _kind(self, task: str, error: str) -> tuple[str, str]:
        known = (task, error)
        if known in self._errors or sum(t == task for t, _ in self._errors) < _ERRORS:
            return known
        return (task, OTHER)

    # --- reading ------------------------------------------------------------------------------

    def running(self) -> list[RunningTask]:
        """Tasks that run now, without those whose process has died."""
        with self._lock:
            for key in [k for k in self._running if not _alive(k[0])]:
                del self._running[key]
            return list(self._running.values())

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {name: self._counts[name] for name in COUNTS}

    def by_task(self) -> dict[tuple[str, str], int]:
        with self._lock:
            return dict(self._by_task)

    def durations(self) -> dict[str, tuple[list[int], float]]:
        """Of attempts: task -> (how many fell into each of BUCKETS and beyond, their sum in seconds)."""
        with self._lock:
            return self._attempts.all()

    def steps(self) -> dict[str, tuple[list[int], float]]:
        """The same of steps, with the commit that records them."""
        with self._lock:
            return self._steps.all()

    def late(self) -> dict[str, tuple[list[int], float]]:
        """The same of the time from a task's ETA to its start."""
        with self._lock:
            return self._late.all()

    def errors(self) -> dict[tuple[str, str], int]:
        """(task, the error's class) -> attempts that failed for good with it."""
        with self._lock:
            return dict(self._errors)

    def rpcs(self) -> dict[str, int]:
        """Calls to Google Cloud by name, of this process and of the tasks that its children ended."""
        with self._lock:
            return dict(self._rpcs + Counter(rpcs.total()))

    def snapshot(self) -> dict[str, Any]:
        """All counts, as plain values."""
        now = time.time()
        running = self.running()
        return {
            **self.counts(),
            "in_flight": len(running),
            "current": [_shown(job, now) for job in running],
            "uptime_seconds": round(now - self.started_at, 3),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    return {
        "gwi_celery": __version__,
        "celery": celery.__version__,
        "kombu": kombu.__version__,
        "python": platform.python_version(),
    }


def _shown(job: RunningTask, now: float) -> dict[str, Any]:
    facts = job.facts
    saved_at = facts.get("checkpoint_at")
    return {
        "type": job.task,
        "task_id": job.task_id,
        "tenant": facts.get("tenant"),
        "run": facts.get("run"),
        "attempt": facts.get("attempt"),
        "fence": facts.get("fence"),
        "age_seconds": round(now - job.started_at, 3),
        "last_checkpoint": facts.get("last_checkpoint"),
        "checkpoint_age_seconds": None if saved_at is None else round(now - saved_at, 3),
    }


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
