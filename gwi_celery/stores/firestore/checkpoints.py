"""A job's checkpoints: how they are read and recorded, and how their TTL is extended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from gwi_celery.errors import StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict
from gwi_celery.firestore.documents import Micros, Query, Write
from gwi_celery.stores import protocol
from gwi_celery.stores.base import Checkpoint, CheckpointKind
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.paths import STEP_KEPT, STEPS, Paths
from gwi_celery.stores.firestore.records import SAVED, UPDATED, Blob, Job, Step, step_of


def recording(
    paths: Paths,
    job: Job,
    checkpoint: Checkpoint,
    stored: Step | None,
    blob: Blob,
    gc_at: int,
) -> tuple[Job, Step, list[Write]]:
    """The writes that record a checkpoint in place of the ``stored`` one, each document at its version.

    Returns the record and the checkpoint as they will be, and the writes: the record's first, then
    the checkpoint's. The last chunks of its blob belong in the same commit.
    """
    job_name = paths.job(job.ref)
    era_name = paths.era(job_name, job.era)
    is_step = checkpoint.kind is CheckpointKind.STEP
    step = Step(
        name=checkpoint.name,
        kind=checkpoint.kind,
        number=1 if is_step else checkpoint.version,
        ordinal=job.ordinal + 1 if stored is None else stored.ordinal,
        blob=blob,
        gc_at=gc_at,
    )
    after = replace(
        job,
        steps=job.steps + (stored is None),
        ordinal=max(job.ordinal, step.ordinal),
        crashes=0 if protocol.is_progress(checkpoint) else job.crashes,
    )
    data: dict[str, Any] = {
        "steps": after.steps,
        "ordinal": after.ordinal,
        "crashes": after.crashes,
        "fence": job.fence,
    }
    if job.inline_bytes is not None:
        size = blob.size if blob.is_inline else 0
        if stored is not None and stored.blob.is_inline:
            size -= stored.blob.size
        after = replace(after, inline_bytes=job.inline_bytes + size)
        data["bytes"] = after.inline_bytes
    writes = [
        documents.change(
            job_name,
            {"data": data},
            job.version,
            mask=[f"data.{key}" for key in data],
            server_times=[UPDATED],
        ),
        documents.replace(
            paths.step(era_name, checkpoint.name),
            step.fields(),
            None if stored is None else stored.version,
            server_times=[SAVED],
        ),
    ]
    if stored is not None:
        writes += blobs.deletions(stored.blob, era_name)
    return after, step, writes


#: What is read of checkpoints without their bytes.
_OUTLINE = ["gc_at", "data.name", "data.kind", "data.version", "data.ordinal", "data.saved"]
_OUTLINE += ["data.sha", "data.chunks", "data.count", "data.size", "data.object"]
#: Documents of at most 900 KB each in one read.
_WHOLE_PER_READ: Final = 4


def steps_of(client: Client, paths: Paths, job: Job, *, outline: bool = False) -> list[Step]:
    """The job's checkpoints, in the order they were first saved.

    Bytes that are in the documents themselves are read along only if they are few.
    """
    era_name = paths.era(paths.job(job.ref), job.era)
    if job.inline_bytes is None:
        few = job.steps <= _WHOLE_PER_READ
    else:
        few = job.inline_bytes <= protocol.LOADED_AT_ONCE
    mask = _OUTLINE if outline or not few else None
    found = client.query(Query(era_name, STEPS, mask=mask))
    return sorted(map(step_of, found.documents.values()), key=lambda step: step.ordinal)


def checkpoints_of(
    client: Client, paths: Paths, job: Job, steps: Sequence[Step]
) -> list[Checkpoint]:
    """The checkpoints with their bytes; bytes that were not read along are read now, some at a time."""
    era_name = paths.era(paths.job(job.ref), job.era)
    read = list(steps)
    unread = [n for n, step in enumerate(read) if step.blob.is_inline and step.blob.inline is None]
    for group in blobs.batches(unread, _WHOLE_PER_READ):
        names = [paths.step(era_name, read[n].name) for n in group]
        documents_ = client.read(names).documents
        for n, name in zip(group, names, strict=True):
            if name not in documents_:
                raise StoreUnusable(
                    f"checkpoint {read[n].name!r} of {job.ref.task} is gone: replay the job from its "
                    "start"
                )
            read[n] = step_of(documents_[name])
    whole = blobs.unpack(client, era_name, [step.blob for step in read])
    return [step.checkpoint(blob) for step, blob in zip(read, whole, strict=True)]


def keep(client: Client, paths: Paths, job: Job, steps: list[Step], gc_at: int) -> None:
    """Extend the TTL of those checkpoints to ``gc_at`` of which half has passed; updates ``steps``."""
    era_name = paths.era(paths.job(job.ref), job.era)
    old = [n for n, step in enumerate(steps) if step.gc_at < gc_at - STEP_KEPT // 2]
    for group in blobs.batches(old, 100):
        writes = []
        for n in group:
            names = [paths.step(era_name, steps[n].name)]
            names += steps[n].blob.chunk_names(era_name)
            fields = {"gc_at": Micros(gc_at)}
            writes += [Write(name, fields, mask=["gc_at"], exists=True) for name in names]
        try:
            written = client.commit_surely(writes, tries=3)
        except Conflict:
            continue  # one is deleted already: an error when it is read
        versions = {
            write.name: version for write, version in zip(writes, written.versions, strict=True)
        }
        for n in group:
            name = paths.step(era_name, steps[n].name)
            steps[n] = replace(steps[n], gc_at=gc_at, version=versions[name])
