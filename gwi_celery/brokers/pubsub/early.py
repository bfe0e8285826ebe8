"""Messages that came before their time, as one connection has seen them: Pub/Sub itself shows nothing."""

from __future__ import annotations

import time
from typing import Any, Final

from gwi_celery import forks
from gwi_celery.brokers.base import Delivery

#: Messages that are remembered at most.
MOST: Final = 1000


class Early:
    """The latest of them, until each is due. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._seen: dict[tuple[str, str], dict[str, Any]] = {}

    def note(self, delivery: Delivery, due: float) -> None:
        """``due``: seconds since the epoch. A later copy of a task's message replaces the earlier."""
        told = delivery.attributes
        task_id = told.get("task_id", "")
        row = {
            "queue": delivery.queue,
            "id": delivery.message_id,
            "task": told.get("task", ""),
            "task_id": task_id,
            "tenant": told.get("tenant", ""),
            "run_id": told.get("run", ""),
            "published_at": delivery.published_at,
            "due": due,
        }
        with self._lock:
            if len(self._seen) >= MOST:
                self._seen = {key: kept for key, kept in self._seen.items() if _waits(kept)}
            while len(self._seen) >= MOST:
                del self._seen[next(iter(self._seen))]
            self._seen[delivery.queue, task_id or delivery.message_id] = row

    def rows(self) -> list[dict[str, Any]]:
        """Those that wait now, soonest first, with the fields of ``gwi_celery.queues.Waiting``."""
        with self._lock:
            return sorted(filter(_waits, self._seen.values()), key=lambda row: float(row["due"]))


def _waits(row: dict[str, Any]) -> bool:
    return float(row["due"]) > time.time()
