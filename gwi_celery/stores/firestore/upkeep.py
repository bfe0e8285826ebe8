"""Deletes what has expired: where there is no TTL policy, or sooner than Google's does.

Expiry is by the server's time of a document's last change. ``gc_at``, which workers write by their
idea of the server's time, only finds candidates; and every deletion names the version it looked at.
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
from gwi_celery.stores.firestore.records import Job, Lock, job_of, lock_of

#: Other jobs are kept: those that have begun, and are unfinished.
_MAY_EXPIRE: Final = [*(status for status in JobStatus if status.terminal), JobStatus.WAITING]

#: Documents in one query, and in one commit of deletions.
_BATCH: Final = 200


#: Times that a commit of deletions is sent while there is no answer.
_TRIES: Final = 5


class Upkeep:
    """Of one database."""

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
            for page, now in self._pages(JOBS, of_status, [("gc_at", "asc")]):
                for document in page:
                    job = job_of(document)
                    # What has expired never comes back: a claim of it begins another era.
                    if deleted < limit and job.expired(now):
                        self.sweep(document.name, job)
                        deleted += self._delete(document)
                if deleted >= limit:
                    return deleted
        return deleted

    def locks(self, limit: int) -> int:
        """Delete up to ``limit`` expired locks under which nobody can write any more; how many.

        One whose job still runs under it is left: its holder may yet renew it. This looks at every
        lock, of which there are as many as jobs that run, or died: an index by time would have to be
        written at every claim and renewal of all tenants, in one place.
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
        """Delete what a record's life has left behind: nobody reads it.

        After an error the TTL policy deletes the rest: the caller's own work is done.
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
    ) -> Iterator[tuple[list[Document], int]]:
        """All documents of a collection id, with the server's time of their reading."""
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
                )
            )
            page = list(read.documents.values())
            yield [d for d in page if d.name.startswith(ours)], read.read_time
            if len(page) < _BATCH:
                return
            after = [*(page[-1].fields[path] for path, _ in order), page[-1].name]

    def _held_jobs(self, locks: list[Lock]) -> set[tuple[str, int]]:
        """(job id, token) of those jobs that run under the lock that names them."""
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
            return 0  # changed meanwhile, or for the next time
        return 1


def sweep(client: Client, paths: Paths, job_name: str, old: Job) -> None:
    """As :meth:`Upkeep.sweep`, for callers whose own work is done: errors are ignored."""
    try:
        Upkeep(client, paths).sweep(job_name, old)
    except StoreError:
        return  # the TTL policy makes up for this
