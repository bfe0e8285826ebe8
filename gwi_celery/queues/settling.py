"""What an operator can do to messages that are held back until a time: deliver them now, or drop them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gwi_celery.brokers.base import Delivery, StoredMessage
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.integration import broker_for, integration
from gwi_celery.queues import parked
from gwi_celery.queues.dead import ids_by_queue
from gwi_celery.queues.held import Waiting
from gwi_celery.queues.parked import Key
from gwi_celery.stores.base import JobFilter, JobRef, JobStatus, Store
from gwi_celery.transport.delayed import due_now, job_of


def release_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Have them delivered now; returns how many still waited. They may have to wait again.

    On Pub/Sub the workers that have them parked do this. Raises NotFound if these have none of them.
    """
    return released(app, list(chosen)).count


def cancel_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Make sure that they never run; returns how many still waited.

    A reliable task's job that has not begun, or waits, ends as cancelled, as by ``jobs.cancel``, and its
    message is delivered now, so that its caller gets that. All other messages are dropped: those of
    plain tasks, and duplicates that would only have got another call's outcome.

    On Pub/Sub the workers that have them parked do this. Raises NotFound if neither these nor a job's
    record know any of them.
    """
    return cancelled(app, list(chosen)).count


@dataclass(frozen=True)
class Settled:
    """How many messages were settled, and how many workers answered; None: none had to be asked."""

    count: int
    workers: int | None = None


def released(app: Any, chosen: Collection[Waiting]) -> Settled:
    """See :func:`release_delayed`."""
    broker = broker_for(app)
    if isinstance(broker, EmbeddedBroker):
        edit, found = _due_now(app), _by_queue(chosen)
        return Settled(sum(broker.hasten(queue, ids, edit) for queue, ids in found.items()))
    looked = parked.look(app, {_key(waiting) for waiting in chosen})
    done = _settle(app, "now", looked, looked.found)
    return _counted(app, done, chosen, looked)


def cancelled(app: Any, chosen: Collection[Waiting]) -> Settled:
    """See :func:`cancel_delayed`."""
    broker, store = broker_for(app), integration(app).store
    if isinstance(broker, EmbeddedBroker):
        jobs = _jobs_of(app, broker, chosen)
        ended = {w for w, job in jobs.items() if job is not None and _end(store, job, w.task_id)}
        dropped = _by_queue(waiting for waiting in jobs if waiting not in ended)
        count = sum(broker.discard(queue, ids) for queue, ids in dropped.items())
        return Settled(count + released(app, ended).count)
    keys = {_key(waiting): waiting.task_id for waiting in chosen}
    looked = parked.look(app, keys)
    over: set[Key] = set()
    for key, task_id in keys.items():
        job = looked.found.get(key) or _recorded(store, task_id)
        if job is not None and _end(store, job, task_id):
            over.add(key)
    _settle(app, "now", looked, over & set(looked.found))  # else it is delivered when it is due
    rest = set(looked.found) - over
    plain = [keys[key] for key in rest if looked.found[key] is None and keys[key]]
    if plain:
        app.control.revoke(plain)  # in case a copy is delivered after all
    return _counted(app, len(over) + _settle(app, "drop", looked, rest), chosen, looked)


def _settle(app: Any, how: str, looked: parked.Parked, keys: Iterable[Key]) -> int:
    keys = list(keys)
    for queue in sorted({queue for queue, _ in keys}):
        integration(app).record_action("hasten" if how == "now" else "purge", queue)
    return parked.settle(app, how, looked, keys)


def _counted(app: Any, done: int, chosen: Collection[Waiting], looked: parked.Parked) -> Settled:
    if chosen and not done:
        raise parked.not_found(app, looked)
    return Settled(done, looked.workers)


#: The reason that the caller of a job cancelled here gets.
_REASON = "cancelled by an operator"


def _end(store: Store, job: JobRef, task_id: str) -> bool:
    """Cancel the job that a message is to begin; False: it ended otherwise, or is another message's."""
    record = store.get_job(job)
    if record is not None and record.origin.task_id not in ("", task_id):
        return False
    ended = store.cancel(job, _REASON, in_advance=True)
    return ended or (record is not None and record.status is JobStatus.CANCELLED)


def _recorded(store: Store, task_id: str) -> JobRef | None:
    if not task_id:
        return None
    found = store.find_jobs(JobFilter(task_id=task_id), limit=1).jobs
    return found[0].job if found else None


def _jobs_of(
    app: Any, broker: EmbeddedBroker, chosen: Iterable[Waiting]
) -> dict[Waiting, JobRef | None]:
    """Those that still wait -> their jobs; None if it is not a reliable task's."""
    found: dict[Waiting, JobRef | None] = {}
    wanted = {(waiting.queue, waiting.id): waiting for waiting in chosen}
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in {queue for queue, _ in wanted}:
            for message in broker.browse(queue):
                waiting = wanted.get((queue, message.message_id))
                if waiting is not None and message.state == "delayed":
                    found[waiting] = job_of(app, channel, _as_delivery(message))
    return found


def _due_now(app: Any) -> Callable[[StoredMessage], tuple[bytes, Mapping[str, str]]]:
    authority = integration(app).authority

    def edit(message: StoredMessage) -> tuple[bytes, Mapping[str, str]]:
        made = due_now(_as_delivery(message), authority)
        return made.data, made.attributes

    return edit


def _as_delivery(message: StoredMessage) -> Delivery:
    return Delivery(
        queue=message.queue,
        ack_id="",
        message_id=message.message_id,
        data=message.data,
        attributes=message.attributes,
        deliveries=message.deliveries,
        published_at=message.published_at,
        priority=message.priority,
        lease_seconds=0.0,
    )


def _key(waiting: Waiting) -> Key:
    return waiting.queue, waiting.task_id or waiting.id


def _by_queue(chosen: Iterable[Waiting]) -> dict[str, list[str]]:
    return ids_by_queue((waiting.queue, waiting.id) for waiting in chosen)
