"""Messages that are held back until a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import ConfigurationError
from gwi_celery.integration import broker_for, integration
from gwi_celery.queues.states import queues
from gwi_celery.stores.base import JobFilter, JobStatus

#: Records in one page.
_PAGE = 200


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

    Pub/Sub shows nothing of it. There these are the jobs whose records say that they wait, each with its
    task's id; a call with an ETA that no worker has tried yet is not among them.
    """
    broker = broker_for(app)
    if not isinstance(broker, EmbeddedBroker):
        yield from _by_their_records(app, queue)
        return
    for state in queues(app):
        if queue not in (None, state.name):
            continue
        for message in broker.browse(state.name):
            if message.state == "delayed" and message.due is not None:
                attributes = message.attributes
                yield Waiting(
                    state.name,
                    message.message_id,
                    attributes.get("task", ""),
                    attributes.get("task_id", ""),
                    attributes.get("tenant", ""),
                    attributes.get("run", ""),
                    message.published_at,
                    message.due,
                )


def _by_their_records(app: Any, queue: str | None) -> Iterator[Waiting]:
    store = integration(app).store
    for status in (JobStatus.WAITING, JobStatus.PENDING):
        token = None
        while True:
            page = store.find_jobs(JobFilter(status=status), limit=_PAGE, token=token)
            for record in page.jobs:
                origin, waits, job = record.origin, record.waits, record.job
                if waits is None or queue not in (None, origin.queue):
                    continue
                due = waits.since if waits.until is None else waits.until
                id = origin.task_id or record.submission
                of = (job.task, id, job.tenant, record.run_id or "")
                yield Waiting(origin.queue or "", id, *of, waits.since, due)
            token = page.next_token
            if token is None:
                break


def release_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Have them delivered now; how many still waited. What they wait for may make them wait again."""
    broker = _embedded(app, "hastened")
    found = _waiting_by_queue(chosen)
    return sum(broker.hasten(queue, frozenset(ids)) for queue, ids in found.items())


def cancel_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Delete them for good; how many still waited. A reliable job is cancelled by ``jobs.cancel``."""
    broker = _embedded(app, "cancelled")
    found = _waiting_by_queue(chosen)
    return sum(broker.discard(queue, frozenset(ids)) for queue, ids in found.items())


def _embedded(app: Any, what: str) -> EmbeddedBroker:
    broker = broker_for(app)
    if not isinstance(broker, EmbeddedBroker):
        raise ConfigurationError(
            f"on Pub/Sub a message that waits can't be {what}: nobody can find it before it is due. `gwi "
            "jobs explain TASK_ID` says what its job waits for (a lock is freed by `gwi locks release`), "
            "and `gwi jobs cancel TASK_ID` ends the job: its message is then dropped when it comes"
        )
    return broker


def _waiting_by_queue(chosen: Iterable[Waiting]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for waiting in chosen:
        found.setdefault(waiting.queue, []).append(waiting.id)
    return found
