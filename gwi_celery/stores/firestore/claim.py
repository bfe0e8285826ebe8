"""The record that a claim writes, given the one that was read. Needs no server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from gwi_celery.stores import protocol
from gwi_celery.stores.base import ClaimRequest, JobRef, JobStatus, Origin, Wait
from gwi_celery.stores.firestore.paths import SECOND
from gwi_celery.stores.firestore.records import Job, Step
from gwi_celery.stores.history import History


def granted_to(
    request: ClaimRequest,
    granted: protocol.Granted,
    stored: Job | None,
    now: int,
    forgotten: Sequence[Step] = (),
) -> Job:
    """The record of a claim that is granted, except what the server sets.

    ``stored`` is the record as it is at the server's time ``now``, expired or not; ``forgotten`` are
    the checkpoints that its next generation doesn't keep.
    """
    if granted.fresh or stored is None:
        return first_generation(request, stored)
    running = replace(
        stored,
        status=JobStatus.RUNNING,
        fingerprint=request.fingerprint,
        run_id=request.run_id,
        submission=request.submission,
        generation=granted.generation,
        attempt=granted.attempt,
        crashes=granted.crashes,
        fence=None,
        lock_id=request.lock.id,
        result_ttl=request.result_ttl,
        outcome=None,
        cancelled_by="",
        result_of=None,
        origin=origin_of(request, stored),
        history=stored.history.claimed(
            request.owner,
            request.lock,
            stored.running,
            first=granted.attempt == 1,
            now=now / SECOND,
        ),
    )
    if granted.anew:
        return replace(running, era=new_era(), steps=0, ordinal=0, inline_bytes=0)
    size = stored.inline_bytes
    if size is not None:
        size -= sum(step.blob.size for step in forgotten if step.blob.is_inline)
    return replace(running, steps=stored.steps - len(forgotten), inline_bytes=size)


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
        origin=origin_of(request, None),
        history=History().claimed(request.owner, request.lock, None, first=True, now=0.0),
    )


def origin_of(request: ClaimRequest, stored: Job | None) -> Origin:
    """What the record keeps of its call: of the request's, if that replaces the former."""
    if is_another_call(request, stored):
        assert request.origin is not None
        return replace(request.origin, envelope=None)
    return Origin() if stored is None else stored.origin


def is_another_call(request: ClaimRequest, stored: Job | None) -> bool:
    """As :func:`gwi_celery.stores.protocol.is_another_call`."""
    kept = None if stored is None or stored.origin == Origin() else stored.submission
    return protocol.is_another_call(request, kept)


def waiting(
    request: ClaimRequest, wait: Wait, stored: Job | None, job: Job | None, now: int
) -> Job:
    """The record of a job that waits, except what the server sets.

    ``stored`` is the record as it is at the server's time ``now``; ``job`` is the same, or None if it has
    expired. A job that has never begun matches any payload, and its record expires.
    """
    if job is None or protocol.never_begun(job):
        begun = unclaimed(request.job, stored) if job is None else job
        job = replace(
            begun,
            run_id=request.run_id,
            fingerprint=protocol.ANY_PAYLOAD,
            submission=request.submission,
            result_ttl=request.result_ttl,
            origin=origin_of(request, job),
        )
    history = job.history.waiting(wait, request.lock, now / SECOND)
    return replace(job, status=JobStatus.WAITING, lock_id=request.lock.id, history=history)


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
        # A finish of the expired record may still be repeated.
        finished=None if expired is None else expired.finished,
        outcome=None,
    )


def new_era() -> str:
    """A fresh name for a record's life."""
    return os.urandom(8).hex()
