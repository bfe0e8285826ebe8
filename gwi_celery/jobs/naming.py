"""What callers pass to name a job: a task's id, an AsyncResult, a JobRef, a record."""

from __future__ import annotations

from typing import Any, TypeAlias

from celery import current_app
from celery.result import AsyncResult

from gwi_celery.errors import InvalidCall, UnknownName
from gwi_celery.integration import store_for, unwrapped
from gwi_celery.stores.base import JobFilter, JobRecord, JobRef, Store

#: What names a job.
Named: TypeAlias = "str | AsyncResult | JobRef | JobRecord"


def app_of(app: Any) -> Any:
    return unwrapped(current_app if app is None else app)


def store_of(app: Any) -> Store:
    return store_for(app_of(app))


def record_of(store: Store, job: Named) -> JobRecord | None:
    """Its current record, with its outcome; None if there is none, or it has expired.

    If a task's id names several jobs, it is the one recorded last.
    """
    if isinstance(job, JobRecord):
        job = job.job
    elif isinstance(job, AsyncResult):
        job = str(job.id)
    if isinstance(job, str):
        found = store.find_jobs(JobFilter(task_id=job), limit=1).jobs
        if not found:
            return None
        job = found[0].job
    if not isinstance(job, JobRef):
        raise InvalidCall(
            f"a job is named by its task's id, an AsyncResult, a JobRef or a record, not by a "
            f"{type(job).__name__}"
        )
    return store.get_job(job)


def known_record(store: Store, job: Named) -> JobRecord:
    """The same. Raises UnknownName if there is none."""
    record = record_of(store, job)
    if record is None:
        raise UnknownName(
            f"no record of {_shown(job)}: no worker has seen it yet, or its result_ttl has passed"
        )
    return record


def _shown(job: Named) -> str:
    if isinstance(job, JobRecord):
        job = job.job
    if isinstance(job, JobRef):
        return f"the job {job.key!r} of {job.task} of tenant {job.tenant!r}"
    return f"task {job}"
