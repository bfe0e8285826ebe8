"""Writes a job's value without its lease: the value's version is the etag.

One commit names the versions of the record and of the value, as they were read. If either has changed
meanwhile, it fails, and both are read again. The holder's next write fails as well, because the record
has a new version: the holder reads, finds its lease unchanged, and sends it again.
"""

from __future__ import annotations

from dataclasses import replace

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Write
from gwi_celery.stores import protocol
from gwi_celery.stores.base import Checkpoint, CheckpointKind, JobRef
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.checkpoints import recording
from gwi_celery.stores.firestore.paths import Paths, step_gc_at
from gwi_celery.stores.firestore.reads import read_job
from gwi_celery.stores.firestore.records import Blob, Job, Step, checksum, step_of
from gwi_celery.stores.firestore.tries import Tries


def put_value(
    client: Client, paths: Paths, ref: JobRef, name: str, blob: bytes, expected: int
) -> Checkpoint:
    """See :meth:`gwi_celery.stores.base.Store.put_value`."""
    sha = checksum(blob)
    value = Checkpoint(name, CheckpointKind.VALUE, blob, expected + 1)
    #: The era for which the blob was packed, its field, and the writes of its chunks.
    packed: tuple[str, Blob, list[Write]] | None = None
    tries = Tries("write a value")
    for _ in tries:
        job = _open_job(client, paths, ref)
        stored = _stored(client, paths, job, name)
        compared = None
        if stored is not None:
            compared = protocol.Stored(stored.kind, stored.number, stored.blob.sha == sha)
        if not protocol.must_put(ref.task, name, compared, expected):
            assert stored is not None
            return stored.checkpoint(blob)
        gc_at = step_gc_at(client, job.result_ttl)
        if packed is None or packed[0] != job.era:
            era_name = paths.era(paths.job(ref), job.era)
            packed = job.era, *blobs.pack(client, blob, era_name, gc_at, [name])
        _, field, pieces = packed
        _, step, writes = recording(paths, job, value, stored, field, gc_at)
        with tries.once():
            written = client.commit([*writes, *pieces])
            if stored is not None:
                blobs.drop(client, [stored.blob])
            return replace(step, saved=written.server_times[1][0]).checkpoint(blob)
    raise AssertionError


def _open_job(client: Client, paths: Paths, ref: JobRef) -> Job:
    """The record. Raises InvalidCall unless the job is there and has not ended."""
    job = read_job(client, paths, ref)
    protocol.check_open(ref, job)
    assert job is not None
    return job


def _stored(client: Client, paths: Paths, job: Job, name: str) -> Step | None:
    step_name = paths.step(paths.era(paths.job(job.ref), job.era), name)
    document = client.read([step_name]).documents.get(step_name)
    return None if document is None else step_of(document)
