"""Messages that arrived before their ETA, as one connection saw them: Pub/Sub itself shows none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from gwi_celery import forks
from gwi_celery.brokers.base import Delivery

#: The most messages that are remembered, and their bytes. Operators may have these delivered now.
MOST: Final = 1000
MOST_BYTES: Final = 16_000_000


class Early:
    """The latest of them, until each is due. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        #: By queue and task id, or message id where there is no task.
        self._seen: dict[tuple[str, str], tuple[Delivery, float]] = {}
        self._bytes = 0

    def note(self, delivery: Delivery, due: float) -> None:
        """``due``: seconds since the epoch. A later copy of a task's message replaces an earlier one."""
        key = delivery.queue, delivery.attributes.get("task_id") or delivery.message_id
        with self._lock:
            self._drop(key)
            if len(self._seen) >= MOST:
                for past in [key for key, (_, due) in self._seen.items() if due <= time.time()]:
                    self._drop(past)
            self._seen[key] = delivery, due
            self._bytes += len(delivery.data)
            while len(self._seen) > MOST or self._bytes > MOST_BYTES:
                self._drop(next(iter(self._seen)))

    def find(self, queue: str, name: str) -> Delivery | None:
        """The latest of that name (a task id, or a message's) that waits now."""
        with self._lock:
            delivery, due = self._seen.get((queue, name), (None, 0.0))
        return delivery if due > time.time() else None

    def forget(self, deliveries: Sequence[Delivery]) -> None:
        """These no longer wait."""
        gone = {delivery.ack_id for delivery in deliveries}
        with self._lock:
            for key in [key for key, (seen, _) in self._seen.items() if seen.ack_id in gone]:
                self._drop(key)

    def rows(self) -> list[dict[str, Any]]:
        """Those that wait now, soonest first, with the fields of ``gwi_celery.queues.Waiting``."""
        now = time.time()
        with self._lock:
            seen = sorted(self._seen.values(), key=lambda each: each[1])
        return [_row(delivery, due) for delivery, due in seen if due > now]

    def _drop(self, key: tuple[str, str]) -> None:
        delivery, _ = self._seen.pop(key, (None, 0.0))
        self._bytes -= len(delivery.data) if delivery is not None else 0


def _row(delivery: Delivery, due: float) -> dict[str, Any]:
    attributes = delivery.attributes
    return {
        "queue": delivery.queue,
        "id": delivery.message_id,
        "task": attributes.get("task", ""),
        "task_id": attributes.get("task_id", ""),
        "tenant": attributes.get("tenant", ""),
        "run_id": attributes.get("run", ""),
        "published_at": delivery.published_at,
        "due": due,
    }
