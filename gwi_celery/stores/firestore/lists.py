"""Lists of jobs and locks, of one tenant by its own path, or of jobs across all tenants.

Every query made here must be served by ``firestore.indexes.json``; a test checks that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document, Filter, Micros, Query
from gwi_celery.ids import digest
from gwi_celery.stores.firestore.paths import JOBS, LOCKS, SECOND, TENANTS, Paths
from gwi_celery.stores.firestore.records import (
    CREATED,
    UPDATED,
    WITHOUT_BLOBS,
    Job,
    job_of,
    lock_of,
)
from gwi_celery.stores.history import call_term, label_term, short, terms
from gwi_celery.stores.paging import check_limit, filter_id, list_id, place_of, token_after
from gwi_celery.stores.values import JobFilter, JobRecord, JobStatus, LockRecord, Page

#: Most documents that one query reads.
_BATCH: Final = 300


def list_jobs(
    client: Client,
    paths: Paths,
    tenant: str,
    status: JobStatus | None,
    run_id: str | None,
    limit: int,
    token: str | None,
    records: Callable[[list[Job]], list[JobRecord]],
) -> Page:
    """One page of a tenant's jobs, newest change first. ``records`` reads the outcomes."""
    check_limit(limit)
    listed = list_id(tenant, status, run_id)
    parent = paths.tenant(tenant)
    after: tuple[Micros, str] | None = None
    if token is not None:
        moment, job_id = place_of(token, listed)
        after = Micros.at(moment), f"{parent}/{JOBS}/{job_id}"
    # One more than the page holds tells whether there is another.
    query = Query(parent, JOBS, filters=_filters(status, run_id), order=[(UPDATED, "desc")])
    page = _live_jobs(client, query, after, limit + 1)
    next_token = None
    if len(page) > limit:
        last = page[limit - 1]
        next_token = token_after(last.updated / SECOND, last.ref.id, listed)
    return Page(records(page[:limit]), next_token)


def find_jobs(
    client: Client, paths: Paths, wanted: JobFilter, limit: int, token: str | None
) -> Page:
    """One page of a tenant's jobs, or of all tenants', newest first."""
    check_limit(limit)
    listed = filter_id(wanted)
    after: tuple[Micros, str] | None = None
    if token is not None:
        moment, name = place_of(token, listed)
        after = Micros.at(moment), _named(paths, name)
    query = Query(
        "" if wanted.tenant is None else paths.tenant(wanted.tenant),
        JOBS,
        descendants=wanted.tenant is None,
        filters=_wanted(wanted),
        order=[(CREATED, "desc")],
        mask=WITHOUT_BLOBS,
    )
    more = _terms(wanted)[1:]

    def fits(document: Document, job: Job) -> bool:
        known = terms(job.origin, job.history.ended) if more else []
        return document.name.startswith(f"{paths.base}/") and all(term in known for term in more)

    page = _live_jobs(client, query, after, limit + 1, fits)
    next_token = None
    if len(page) > limit:
        last = page[limit - 1]
        # Across tenants a job is named by its tenant's digest and its own id.
        name = f"{paths.job(last.ref).split('/')[-3]}.{last.ref.id}"
        next_token = token_after(last.created / SECOND, name, listed)
    return Page([job.record(None) for job in page[:limit]], next_token)


def _named(paths: Paths, name: str) -> str:
    """The document that a page token names."""
    tenant, _, job = name.partition(".")
    return f"{paths.base}/{TENANTS}/{tenant}/{JOBS}/{job}"


def _wanted(wanted: JobFilter) -> list[Filter]:
    """Each equality is served by a composite index of it and ``created``; Firestore merges several."""
    filters = []
    if wanted.status is not None:
        filters.append(Filter("status", "==", wanted.status.value))
    if wanted.task is not None:
        filters.append(Filter("task", "==", digest("task", wanted.task)))
    if wanted.run_id is not None:
        filters.append(Filter("run", "==", digest("run", wanted.run_id)))
    if wanted.error_type is not None:
        filters.append(Filter("error", "==", short(wanted.error_type)))
    if wanted.parent_id is not None:
        filters.append(Filter("parent", "==", digest("call", wanted.parent_id)))
    term = _terms(wanted)
    if term:  # a query can have only one such filter
        filters.append(Filter("terms", "array-contains", digest("term", term[0])))
    if not filters and wanted.tenant is None:
        # With the indexes that gcloud makes, no single-field index covers all tenants.
        filters.append(Filter("status", "in", [status.value for status in JobStatus]))
    for op, moment in ((">=", wanted.since), ("<", wanted.before)):
        if moment is not None:
            filters.append(Filter(CREATED, op, Micros.at(moment)))
    return filters


def _terms(wanted: JobFilter) -> list[str]:
    call = [] if wanted.task_id is None else [call_term(wanted.task_id)]
    return call if wanted.label is None else [*call, label_term(*wanted.label)]


def _live_jobs(
    client: Client,
    query: Query,
    after: tuple[Micros, str] | None,
    wanted: int,
    fits: Callable[[Document, Job], bool] = lambda document, job: True,
) -> list[Job]:
    """Jobs that have not expired and fit, in the query's order."""
    found: list[Job] = []
    asked = min(wanted, _BATCH)
    path = query.order[0][0]
    while len(found) < wanted:
        read = client.query(replace(query, after=after, limit=asked))
        documents: list[Document] = list(read.documents.values())
        for document in documents:
            job = job_of(document)
            if fits(document, job) and not job.expired(read.read_time):
                found.append(job)
        if len(documents) < asked:
            break
        after = Micros(documents[-1].fields[path]), documents[-1].name
        asked = _BATCH  # there may be a long run of expired jobs
    return found[:wanted]


def _filters(status: JobStatus | None, run_id: str | None) -> list[Filter]:
    filters = []
    if status is not None:
        filters.append(Filter("status", "==", status.value))
    if run_id is not None:
        filters.append(Filter("run", "==", digest("run", run_id)))
    return filters


def list_locks(client: Client, paths: Paths, tenant: str) -> list[LockRecord]:
    read = client.query(Query(paths.tenant(tenant), LOCKS))
    locks = [lock_of(document).record(read.read_time) for document in read.documents.values()]
    return sorted(locks, key=lambda lock: lock.fence)
