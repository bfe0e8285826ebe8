"""Messages that are held back until a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.headers import DELAYED_COMMAND
from gwi_celery.integration import broker_for, integration
from gwi_celery.queues.states import queues
from gwi_celery.stores.base import JobFilter, JobStatus

#: Seconds within which workers have to answer.
_ANSWER = 1.0
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

    Pub/Sub doesn't show such messages. There these are the jobs whose records say that they wait, and
    what workers have handed back until it is due: the latest 1,000 of each that answers in a second.
    """
    broker = broker_for(app)
    if not isinstance(broker, EmbeddedBroker):
        known = set()
        for waiting in _by_their_records(app, queue):
            known.add(waiting.task_id)
            yield waiting
        yield from _seen_by_workers(app, queue, known)
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


def _seen_by_workers(app: Any, queue: str | None, known: set[str]) -> Iterator[Waiting]:
    """What workers have handed back until it is due, except the task ids in ``known``."""
    if not app.conf.worker_enable_remote_control:
        return  # as on provisioned Pub/Sub
    latest: dict[tuple[str, str], Waiting] = {}
    for answer in app.control.broadcast(DELAYED_COMMAND, reply=True, timeout=_ANSWER) or ():
        for rows in answer.values():
            if not isinstance(rows, list):
                continue  # a worker of 0.1, which doesn't know the command
            for row in rows:
                waiting = Waiting(**row)
                key = (waiting.queue, waiting.task_id or waiting.id)
                # A task that is retried has a later copy.
                if key not in latest or latest[key].due < waiting.due:
                    latest[key] = waiting
    for waiting in latest.values():
        if waiting.task_id not in known and queue in (None, waiting.queue):
            yield waiting


def where(app: Any, task_id: str) -> str | None:
    """A sentence that says where a task's message is, if no worker has begun it; None if that is unknown.

    On Pub/Sub only what workers handed back until it is due can be found.
    """
    broker = broker_for(app)
    if not isinstance(broker, EmbeddedBroker):
        waiting = next((w for w in delayed(app) if w.task_id == task_id), None)
        return None if waiting is None else _delayed(waiting.queue, waiting.due)
    for state in queues(app):
        for message in broker.browse(state.name):
            if message.attributes.get("task_id") != task_id:
                continue
            if message.state == "delayed":
                return _delayed(state.name, message.due or 0.0)
            if message.state == "leased":
                return (
                    f"was taken from queue {state.name} by a worker that has not begun with it yet"
                )
            if state.paused:
                return f"waits in queue {state.name}, which is paused: `gwi queues resume {state.name}`"
            if not state.consumers:
                start = f"start one with -Q {state.name}"
                return f"waits in queue {state.name}, which no worker consumes: {start}"
            return f"waits in queue {state.name} behind {state.ready} others: add workers"
    return None


def _delayed(queue: str, due: float) -> str:
    return f"is delayed in queue {queue}: it is due in {max(due - time.time(), 0.0):.0f} s"
