"""Lists of jobs and locks, each a query by one tenant's own path.

Every query made here must be served by ``firestore.indexes.json``, for a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gwi_celery.errors import InvalidCall
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document, Filter, Micros, Query
from gwi_celery.stores.base import JobRecord, JobStatus, LockRecord, Page
from gwi_celery.stores.firestore.records import (
    JOBS,
    LOCKS,
    SECOND,
    UPDATED,
    Job,
    Places,
    job_of,
    lock_of,
    run_digest,
)
from gwi_celery.stores.paging import list_id, place_of, token_after

#: Most documents that one query reads.
_BATCH: Final = 300


def list_jobs(
    client: Client,
    places: Places,
    tenant: str,
    status: JobStatus | None,
    run_id: str | None,
    limit: int,
    token: str | None,
    records: Callable[[list[Job]], list[JobRecord]],
) -> Page:
    """One page. ``records`` reads the large outcomes."""
    if limit < 1:
        raise InvalidCall(f"a page of {limit} jobs: ask for 1 or more")
    listed = list_id(tenant, status, run_id)
    parent = places.tenant(tenant)
    after: tuple[Micros, str] | None = None
    if token is not None:
        moment, job_id = place_of(token, listed)
        after = Micros(round(moment * SECOND)), f"{parent}/{JOBS}/{job_id}"
    # One more than the page holds tells whether there is another.
    page = _live_jobs(client, parent, _filters(status, run_id), after, limit + 1)
    next_token = None
    if len(page) > limit:
        last = page[limit - 1]
        next_token = token_after(last.updated / SECOND, last.ref.id, listed)
    return Page(records(page[:limit]), next_token)


def _live_jobs(
    client: Client,
    parent: str,
    filters: list[Filter],
    after: tuple[Micros, str] | None,
    wanted: int,
) -> list[Job]:
    """Jobs that have not expired, newest change first."""
    found: list[Job] = []
    asked = min(wanted, _BATCH)
    while len(found) < wanted:
        read = client.query(
            Query(
                parent, JOBS, filters=filters, order=[(UPDATED, "desc")], after=after, limit=asked
            )
        )
        documents: list[Document] = list(read.documents.values())
        jobs = [job_of(document) for document in documents]
        found += [job for job in jobs if not job.expired(read.read_time)]
        if len(documents) < asked:
            break
        after = Micros(jobs[-1].updated), documents[-1].name
        asked = _BATCH  # there is a stretch of what has expired: not one by one through it
    return found[:wanted]


def _filters(status: JobStatus | None, run_id: str | None) -> list[Filter]:
    filters = []
    if status is not None:
        filters.append(Filter("status", "==", status.value))
    if run_id is not None:
        filters.append(Filter("run", "==", run_digest(run_id)))
    return filters


def list_locks(client: Client, places: Places, tenant: str) -> list[LockRecord]:
    read = client.query(Query(places.tenant(tenant), LOCKS))
    locks = [lock_of(document).record(read.read_time) for document in read.documents.values()]
    return sorted(locks, key=lambda lock: lock.fence)
