"""What a claim is answered, given the record and the lock as they were read: no server needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from gwi_celery.stores import protocol
from gwi_celery.stores.base import (
    Cancelled,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    JobStatus,
    Mismatch,
)
from gwi_celery.stores.firestore.records import SECOND, Job, Lock, Step


class SameClaim:
    """The lock is this very claim's already: its answer was lost."""


#: Which answer the record alone gives; it is filled with the record.
Settled = type[Mismatch] | type[Completed] | type[Cancelled]


def settled(request: ClaimRequest, job: Job | None) -> Settled | None:
    """The answer if the record decides; ``job`` is None if there is none or it has expired."""
    if job is None:
        return None
    same = protocol.same_payload(job.fingerprint, request.fingerprint)
    if not (same or protocol.corrects(job.status, job.failed, request)):
        return Mismatch
    if job.status.terminal and not _opens_next_generation(request, job):
        return Cancelled if job.status is JobStatus.CANCELLED else Completed
    return None


def own_lock(request: ClaimRequest, job: Job | None) -> str | None:
    """The id of the other lock under which the job's last attempt may still hold it."""
    if job is None or job.status is not JobStatus.RUNNING or job.lock_id == request.lock.id:
        return None
    return job.lock_id


def contended(
    request: ClaimRequest, job: Job | None, lock: Lock | None, own: Lock | None, now: int
) -> Held | SameClaim | None:
    """The answer if a lock decides: the one that is asked for, or the record's ``own``."""
    if lock is not None:
        same = (lock.nonce, lock.job) == (request.nonce, request.job)
        if same and job is not None and job.fence == lock.fence:
            return SameClaim()
    for holder in (lock, own):
        if holder is not None and not holder.expired(now):
            return Held(holder.owner, holder.job, retry_after=(holder.expires - now) / SECOND)
    return None


def granted(
    request: ClaimRequest, stored: Job | None, job: Job | None, forgotten: Sequence[Step]
) -> Job:
    """The record of a claim that is to be granted, but for what the server sets.

    ``stored`` is the record as it is, expired or not; its next generation makes ``forgotten`` anew.
    """
    if job is None:
        return first_generation(request, stored)
    running = replace(
        job,
        status=JobStatus.RUNNING,
        fingerprint=request.fingerprint,
        run_id=request.run_id,
        submission=request.submission,
        fence=None,
        lock_id=request.lock.id,
        result_ttl=request.result_ttl,
        outcome=None,
        cancelled_by="",
        result_of=None,
    )
    if not job.status.terminal:
        crashes = protocol.crashes_after_takeover(job.crashes, job.status)
        return replace(running, attempt=job.attempt + 1, crashes=crashes)
    running = replace(running, generation=job.generation + 1, attempt=1, crashes=0)
    if begins_anew(request, job):
        return replace(running, era=new_era(), steps=0, ordinal=0, inline_bytes=0)
    size = job.inline_bytes
    if size is not None:
        size -= sum(step.blob.size for step in forgotten if step.blob.is_inline)
    return replace(running, steps=job.steps - len(forgotten), inline_bytes=size)


def first_generation(request: ClaimRequest, expired: Job | None = None) -> Job:
    """A new record, in place of an expired one if there is one."""
    return replace(
        unclaimed(request.job, expired),
        run_id=request.run_id,
        fingerprint=request.fingerprint,
        submission=request.submission,
        attempt=1,
        fence=None,
        lock_id=request.lock.id,
        result_ttl=request.result_ttl,
    )


def unclaimed(job: JobRef, expired: Job | None) -> Job:
    """A record in its first generation that nobody has claimed, in place of an expired one."""
    return Job(
        ref=job,
        run_id=None,
        status=JobStatus.RUNNING,
        fingerprint=protocol.ANY_PAYLOAD,
        submission="",
        failed=(),
        generation=1,
        attempt=0,
        crashes=0,
        fence=0,
        lock_id="",
        result_ttl=0.0,
        era=new_era(),
        steps=0,
        ordinal=0,
        # A finish of the expired one may be sent again yet, if its answer was lost.
        finished=None if expired is None else expired.finished,
        outcome=None,
    )


def new_era() -> str:
    return os.urandom(8).hex()


def replays(request: ClaimRequest, job: Job) -> bool:
    """Whether this claim, if granted, replays."""
    return protocol.replays_next(job.status, job.generation, request)


def begins_anew(request: ClaimRequest, job: Job) -> bool:
    """Whether the next generation of a job that has ended forgets every checkpoint.

    It needs no reading of them, so that those that are damaged are no obstacle.
    """
    if replays(request, job):
        assert request.replay is not None
        return request.replay.from_step is None
    return not protocol.same_payload(job.fingerprint, request.fingerprint)


def _opens_next_generation(request: ClaimRequest, job: Job) -> bool:
    if replays(request, job):
        return True
    failed = job.status is JobStatus.FAILED
    return failed and protocol.submission_id(request.submission) not in job.failed
