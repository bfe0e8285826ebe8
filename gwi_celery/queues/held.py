"""Messages that are held back until a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gwi_celery.queues.states import embedded, queues


@dataclass(frozen=True)
class Waiting:
    """A message that is held back until a time. Times are seconds since the epoch."""

    queue: str
    id: str
    task: str
    task_id: str
    tenant: str
    run_id: str
    published_at: float
    #: When it may be delivered.
    due: float


def delayed(app: Any, queue: str | None = None) -> Iterator[Waiting]:
    """What waits for its time (an ETA, a retry, a lock, a limit), of one queue or of all.

    Raises ConfigurationError on Pub/Sub, which shows nothing of it: ask ``gwi_celery.jobs`` there.
    """
    broker = embedded(app, "listed")
    for state in queues(app):
        if queue not in (None, state.name):
            continue
        for message in broker.browse(state.name):
            if message.state == "delayed" and message.due is not None:
                said = message.attributes
                yield Waiting(
                    state.name,
                    message.message_id,
                    said.get("task", ""),
                    said.get("task_id", ""),
                    said.get("tenant", ""),
                    said.get("run", ""),
                    message.published_at,
                    message.due,
                )


def release_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Have them delivered now; how many still waited. What they wait for may make them wait again."""
    broker = embedded(app, "hastened")
    found = _waiting_by_queue(chosen)
    return sum(broker.hasten(queue, frozenset(ids)) for queue, ids in found.items())


def cancel_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Delete them for good; how many still waited. A reliable job is cancelled by ``jobs.cancel``."""
    broker = embedded(app, "cancelled")
    found = _waiting_by_queue(chosen)
    return sum(broker.discard(queue, frozenset(ids)) for queue, ids in found.items())


def _waiting_by_queue(chosen: Iterable[Waiting]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for waiting in chosen:
        found.setdefault(waiting.queue, []).append(waiting.id)
    return found
