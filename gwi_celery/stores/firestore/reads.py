"""Reads of a job's record and lock, each as of one moment by the server's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document
from gwi_celery.stores.base import JobRecord, JobRef, LockRef
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.paths import Paths
from gwi_celery.stores.firestore.records import Job, Lock, get_text, job_of, lock_of


@dataclass(frozen=True)
class Seen:
    """The record and the lock, expired or not, as of one moment."""

    job: Job | None
    lock: Lock | None
    #: The server's time of the read, microseconds.
    now: int
    others: Sequence[Document] = ()

    @property
    def live_job(self) -> Job | None:
        return None if self.job is None or self.job.expired(self.now) else self.job


def see(
    client: Client, paths: Paths, job: JobRef, lock: LockRef, others: Sequence[str] = ()
) -> Seen:
    """One read of a job's record and a lock, and of other documents with them."""
    job_name, lock_name = paths.job(job), paths.lock(lock)
    read = client.read([job_name, lock_name, *others])
    found = dict(read.documents)
    job_document, lock_document = found.pop(job_name, None), found.pop(lock_name, None)
    return Seen(
        None if job_document is None else job_of(job_document),
        None if lock_document is None else lock_of(lock_document),
        read.read_time,
        list(found.values()),
    )


def read_job(client: Client, paths: Paths, job: JobRef) -> Job | None:
    """The record; None when there is none or it has expired."""
    name = paths.job(job)
    read = client.read([name])
    document = read.documents.get(name)
    stored = None if document is None else job_of(document)
    return None if stored is None or stored.expired(read.read_time) else stored


def whole_record(client: Client, paths: Paths, job: Job) -> JobRecord:
    """The record with its outcome. Raises StoreUnusable when the outcome is damaged."""
    if job.outcome is None:
        return job.record(None)
    era_name = paths.era(paths.job(job.ref), job.era)
    return job.record(blobs.unpack(client, era_name, [job.outcome])[0])


def reason_of(client: Client, paths: Paths, job: Job) -> str:
    """Why a job was cancelled."""
    assert job.outcome is not None
    (blob,) = blobs.unpack(client, paths.era(paths.job(job.ref), job.era), [job.outcome])
    return get_text(blob)
