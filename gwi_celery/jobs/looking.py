"""Looking at jobs: lists, everything on one, and why it is in its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any

from gwi_celery import queues
from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.errors import ConfigurationError, InvalidCall
from gwi_celery.jobs.naming import Named, app_of, record_of, store_of
from gwi_celery.jobs.wording import sentence
from gwi_celery.reliability.origin import call_of
from gwi_celery.stores.base import (
    Checkpoint,
    JobFilter,
    JobRecord,
    JobRef,
    JobStatus,
    LockRecord,
    Page,
    PlaceRecord,
    Store,
)

#: Children that :func:`get` reads at most.
_MOST_CHILDREN = 1000
#: Places of a limit that :func:`explain` reads at most.
_MOST_PLACES = 20


@dataclass(frozen=True)
class JobDetails:
    """Everything on one job."""

    record: JobRecord
    #: In the order they were first saved, without their bytes: names, sizes, times.
    steps: Sequence[Checkpoint]
    #: Jobs that this one has called, newest first; those that a worker has seen.
    children: Sequence[JobRecord]
    #: The lock that it holds or waits for, whoever holds it; None if nobody does.
    lock: LockRecord | None
    #: Its arguments and headers; None if they were not kept.
    call: Mapping[str, Any] | None
    #: :func:`explain`'s sentence.
    explanation: str
    #: Its messages that are dead letters; on Pub/Sub by their records.
    dead_letters: Sequence[DeadLetter] = ()


def find(
    *,
    tenant: str | None = None,
    task: str | None = None,
    status: JobStatus | str | None = None,
    label: tuple[str, str] | str | None = None,
    error: type[BaseException] | str | None = None,
    since: datetime | float | None = None,
    older_than: timedelta | float | None = None,
    run: str | None = None,
    limit: int = 100,
    page: str | None = None,
    app: Any = None,
) -> Page:
    """Jobs that fit all that is given, newest first; of all tenants unless one is named.

    Args:
        status: ``"waiting"``, ``"failed"`` and so on.
        label: ``("customer", "7")`` or ``"customer=7"``.
        error: The class of a job's last error, or its name.
        since: First recorded at this time or later; a number is seconds since the epoch.
        older_than: First recorded longer ago than that; a number is seconds.
        limit: Jobs of one page.
        page: ``next_token`` of the page before: the next one is stable, whatever changes meanwhile.

    The records have no outcomes, which :func:`get` reads. Raises InvalidCall for an impossible filter.
    """
    store = store_of(app)
    before = None
    if older_than is not None:
        seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
        before = _now() - _number("older_than", seconds)
    wanted = JobFilter(
        tenant=tenant,
        task=task,
        status=_status(status),
        run_id=run,
        label=_label(label),
        error_type=error.__name__ if isinstance(error, type) else error,
        since=since.timestamp() if isinstance(since, datetime) else _number("since", since),
        before=before,
    )
    return store.find_jobs(wanted, limit=limit, token=page)


def get(job: Named, *, app: Any = None) -> JobDetails | None:
    """Everything on one job; None if no worker has seen it yet, or its record has expired."""
    store = store_of(app)
    record = record_of(store, job)
    if record is None:
        return None
    envelope = store.get_envelope(record.job)
    lock = None if record.lock is None else store.get_lock(record.lock)
    return JobDetails(
        record=record,
        steps=store.get_checkpoints(record.job, outline=True),
        children=list(children_of(store, record, _MOST_CHILDREN)),
        lock=lock,
        call=None if envelope is None else call_of(envelope),
        explanation=sentence(record, lock, _now(), _places(store, record)),
        dead_letters=_dead_letters(app_of(app), record),
    )


def _dead_letters(app: Any, record: JobRecord) -> list[DeadLetter]:
    ids = calls_of(record)
    if record.status is JobStatus.SUCCEEDED or not ids or app.conf.task_always_eager:
        return []
    try:
        return list(queues.dead_letters(app, record.origin.queue, ids=ids))
    except ConfigurationError:  # another package's broker
        return []


def explain(job: Named, *, app: Any = None) -> str:
    """Why a job is in its state, in one sentence."""
    store = store_of(app)
    record = record_of(store, job)
    if record is None:
        return (
            "no worker has seen it yet (look at its queue, and at what is delayed), or its result_ttl "
            "has passed"
        )
    lock = None if record.lock is None else store.get_lock(record.lock)
    return sentence(record, lock, _now(), _places(store, record))


def _places(store: Store, record: JobRecord) -> Sequence[PlaceRecord]:
    """The taken places of the limit that it waits for."""
    waits = record.waits
    if waits is None or not waits.limit_id:
        return ()
    return store.list_places(waits.limit_id, limit=_MOST_PLACES)


def descendants(job: Named, *, app: Any = None) -> Iterator[tuple[int, JobRecord]]:
    """A job, the jobs that it has called, those that they have called, and so on, each with its depth.

    The job itself has depth 0. Depth first, each job once, if a worker has seen it. Nothing for an
    unknown job.
    """
    store = store_of(app)
    record = record_of(store, job)
    todo = [] if record is None else [(0, record)]
    seen: set[JobRef] = set()
    while todo:
        depth, record = todo.pop()
        if record.job not in seen:
            seen.add(record.job)
            yield depth, record
            todo += [(depth + 1, child) for child in children_of(store, record)]


def children_of(store: Store, record: JobRecord, at_most: int | None = None) -> Iterator[JobRecord]:
    """Jobs that its recorded attempts have called, newest first for each."""
    for task_id in calls_of(record):
        of, token = JobFilter(tenant=record.job.tenant, parent_id=task_id), None
        while at_most is None or at_most > 0:
            page = store.find_jobs(of, token=token)
            yield from page.jobs
            token = page.next_token
            if token is None:
                break
            at_most = None if at_most is None else at_most - len(page.jobs)


def calls_of(record: JobRecord) -> list[str]:
    """The task ids of the calls for which it was attempted, and of its first one."""
    calls = {past.task_id for past in record.attempts} | {record.origin.task_id}
    return sorted(calls - {""})


def _now() -> float:
    return datetime.now().timestamp()


def _status(status: JobStatus | str | None) -> JobStatus | None:
    if status is None or isinstance(status, JobStatus):
        return status
    try:
        return JobStatus(status)
    except ValueError:
        known = ", ".join(each.value for each in JobStatus)
        raise InvalidCall(f"no job has the status {status!r}: it is one of {known}") from None


def _label(label: tuple[str, str] | str | None) -> tuple[str, str] | None:
    if not isinstance(label, str):
        return label
    name, equals, value = label.partition("=")
    if not equals:
        raise InvalidCall(f"the label {label!r} has no value: write it as name=value")
    return name, value


def _number(name: str, value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise InvalidCall(f"{name} is a {type(value).__name__}: pass a number of seconds")
    if value is not None and not isfinite(value):
        raise InvalidCall(f"{name} is {value!r}: pass a finite number of seconds")
    return value
