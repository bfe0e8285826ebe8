"""Deletes what has expired, where there is no TTL policy, or sooner than the policy does.

A document's expiry counts from the server's time of its last change. ``gc_at``, which workers write by
their estimate of the server's time, only finds candidates. Every deletion names the version it has read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from gwi_celery.errors import StoreError
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, Unsettled
from gwi_celery.firestore.documents import Document, Filter, Micros, Query, Write
from gwi_celery.stores.base import JobStatus
from gwi_celery.stores.firestore.blobs import batches
from gwi_celery.stores.firestore.limits import freeing
from gwi_celery.stores.firestore.paths import CHUNKS, JOB_KEPT, JOBS, LOCKS, STEPS, Paths
from gwi_celery.stores.firestore.records import WITHOUT_BYTES, Job, Lock, job_of, lock_of

#: The states of records that may expire. Jobs that have begun, and are unfinished, are kept.
_MAY_EXPIRE: Final = [*(status for status in JobStatus if status.terminal), JobStatus.WAITING]

#: Documents in one query, and in one commit of deletions.
_BATCH: Final = 200
#: Tries of a commit of deletions that gets no answer.
_TRIES: Final = 5


class Upkeep:
    """Deletes what has expired in one database."""

    def __init__(self, client: Client, paths: Paths) -> None:
        self._client = client
        self._paths = paths

    def jobs(self, limit: int) -> int:
        """Delete up to ``limit`` expired records with their checkpoints; how many."""
        deleted = 0
        if limit <= 0:
            return 0
        now = self._client.read([self._paths.base]).read_time
        perhaps = Filter("gc_at", "<=", Micros(now + JOB_KEPT))
        for status in _MAY_EXPIRE:
            of_status = [Filter("status", "==", status.value), perhaps]
            mask = ["gc_at", *WITHOUT_BYTES]
            for page, now in self._pages(JOBS, of_status, [("gc_at", "asc")], mask):
                for document in page:
                    job = job_of(document)
                    # An expired era is never used again: the next claim begins another.
                    if deleted < limit and job.expired(now):
                        self.sweep(document.name, job)
                        deleted += self._delete(document)
                if deleted >= limit:
                    return deleted
        return deleted

    def locks(self, limit: int) -> int:
        """Delete up to ``limit`` expired locks under which nobody can write any more; how many.

        A lock whose job still runs under it stays: its holder may still renew it. This reads every
        lock, of which there are as many as jobs that run or have died. An index by time would avoid
        that, but every claim and renewal of all tenants would write to one spot of it.
        """
        deleted = 0
        if limit <= 0:
            return 0
        for page, now in self._pages(LOCKS):
            expired = [(d, lock) for d in page if (lock := lock_of(d)).expired(now)]
            running = self._held_jobs([lock for _, lock in expired])
            for document, lock in expired:
                if deleted < limit and (lock.job.id, lock.fence) not in running:
                    deleted += self._delete(document, *freeing(self._paths, lock))
            if deleted >= limit:
                break
        return deleted

    def sweep(self, job_name: str, job: Job) -> None:
        """Delete the checkpoints, chunks and objects of a record's former life, which nobody reads.

        Raises StoreError; the TTL policy deletes what is left then.
        """
        blobs = [blob for blob in (job.outcome, job.envelope) if blob is not None]
        if not job.steps and all(blob.is_inline for blob in blobs):
            return
        era_name = self._paths.era(job_name, job.era)
        for collection in (STEPS, CHUNKS):
            found = self._client.query(Query(era_name, collection, mask=[]))
            for names in batches(found.documents, _BATCH):
                self._client.commit_surely([documents.delete(name) for name in names], tries=_TRIES)
        if self._client.bucket is not None:
            self._client.bucket.delete_below(f"{era_name}/")

    def _pages(
        self,
        collection: str,
        filters: Sequence[Filter] = (),
        order: Sequence[tuple[str, str]] = (),
        mask: Sequence[str] | None = None,
    ) -> Iterator[tuple[list[Document], int]]:
        """All documents of a collection id, in pages, each with the server's time of its read."""
        ours = f"{self._paths.base}/"
        after: list[Any] | None = None
        while True:
            read = self._client.query(
                Query(
                    "",  # lists across collections are for the root only
                    collection,
                    descendants=True,
                    filters=filters,
                    order=order,
                    after=after,
                    limit=_BATCH,
                    mask=mask,
                )
            )
            page = list(read.documents.values())
            yield [d for d in page if d.name.startswith(ours)], read.read_time
            if len(page) < _BATCH:
                return
            after = [*(page[-1].fields[path] for path, _ in order), page[-1].name]

    def _held_jobs(self, locks: list[Lock]) -> set[tuple[str, int]]:
        """(job id, token) of those jobs that still run, of the jobs that the locks name."""
        names = {self._paths.job(lock.job): lock for lock in locks}
        if not names:
            return set()
        found = self._client.read(list(names)).documents
        jobs = [job_of(document) for document in found.values()]
        return {
            (job.ref.id, job.fence)
            for job in jobs
            if job.status is JobStatus.RUNNING and job.fence is not None
        }

    def _delete(self, document: Document, *also: Write) -> int:
        try:
            self._client.commit([documents.delete(document.name, document.update_time), *also])
        except (Conflict, Unsettled):
            return 0  # it was changed meanwhile; or the next cleanup deletes it
        return 1


def sweep(client: Client, paths: Paths, job_name: str, old: Job) -> None:
    """As :meth:`Upkeep.sweep`, for callers whose own work is done: errors are ignored."""
    try:
        Upkeep(client, paths).sweep(job_name, old)
    except StoreError:
        return  # the TTL policy deletes the rest
