"""The sentence that says why a job is in its state: pure functions of its record and its lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from gwi_celery.reliability.wording import short
from gwi_celery.stores.base import (
    JobRecord,
    JobStatus,
    LockRecord,
    LockRef,
    PlaceRecord,
    Wait,
)

#: Holders of a limit that a sentence names.
_NAMED = 3


def sentence(
    record: JobRecord, lock: LockRecord | None, now: float, places: Sequence[PlaceRecord] = ()
) -> str:
    """Why the job of ``record`` is in its state.

    Args:
        lock: The record's lock as it is now; None: it is free, or unknown.
        places: The places now taken of the limit that the job waits for.
    """
    match record.status:
        case JobStatus.SUCCEEDED:
            return f"succeeded at {moment(record.updated_at, now)}, {_attempt(record)}"
        case JobStatus.FAILED:
            return (
                f"failed at {moment(record.updated_at, now)}, {_attempt(record)}"
                f"{_with_error(record)}: replay it, or call it anew"
            )
        case JobStatus.CANCELLED:
            reason = (record.outcome or b"").decode("utf-8", "replace").partition("\n")[0]
            return f"was cancelled at {moment(record.updated_at, now)}: {reason}"
        case JobStatus.RUNNING:
            return _running(record, lock, now)
        case JobStatus.WAITING:
            return _waiting(record, lock, now, places)
        case JobStatus.PENDING:
            return _pending(record, now)


def _running(record: JobRecord, lock: LockRecord | None, now: float) -> str:
    worker = record.worker or (_process(lock.owner) if lock is not None else "a worker")
    if lock is not None and lock.fence == record.fence:
        if lock.expires_at > now:
            began = record.attempts[-1].began if record.attempts else record.updated_at
            progress = _progress(record)
            return f"runs on {worker} since {moment(began, now)}, {_attempt(record)}{progress}"
        return (
            f"its worker {worker} fell silent: its lease ended at {moment(lock.expires_at, now)}, and "
            "the job goes on as soon as its message is redelivered"
        )
    if lock is not None and lock.expires_at > now:
        return f"its worker {worker} lost its lease, and now the job {_for_lock(lock, now)}"
    if record.lock is None:
        return f"runs on {worker}, {_attempt(record)}"
    return (
        f"its worker {worker} vanished and its lock is free: the job goes on as soon as its message is "
        "redelivered"
    )


def _waiting(
    record: JobRecord, lock: LockRecord | None, now: float, places: Sequence[PlaceRecord]
) -> str:
    waits = record.waits
    if waits is None:
        return "waits for a lock or a limit"
    if waits.kind == "lock":
        if lock is not None and lock.expires_at > now:
            return _for_lock(lock, now)
        which = "a lock" if record.lock is None else _lock(record.lock)
        return (
            f"waited for {which}, which is free now: it runs when its message is delivered next"
            f"{_in(waits.until, now)}"
        )
    if waits.kind == "limit":
        return _for_limit(waits, places, now)
    until = "" if waits.until is None else f", and is tried again{_in(waits.until, now)}"
    return f"waits for the {waits.kind} {waits.what} since {moment(waits.since, now)}{until}"


def _pending(record: JobRecord, now: float) -> str:
    waits, last = record.waits, record.attempts[-1] if record.attempts else None
    if waits is not None and waits.until is not None:
        return (
            f"{_attempt(record)} ended with {waits.what}; it is tried again{_in(waits.until, now)}"
        )
    queue = f" of queue {record.origin.queue}" if record.origin.queue else ""
    if last is None or last.end is None:
        return f"was handed back: it waits for a worker{queue}"
    error = f" ({last.end.error_type}: {last.end.error})" if last.end.error_type else ""
    return (
        f"was handed back by {last.worker} at {moment(last.ended or 0.0, now)}: {last.end.how}{error}; "
        f"it waits for a worker{queue}"
    )


def _for_lock(lock: LockRecord, now: float) -> str:
    since = moment(lock.fence / 1_000_000, now)
    left = max(0, round(lock.expires_at - now))
    which = _lock(LockRef(lock.tenant, lock.scope))
    return (
        f"waits for {which}, held by {_process(lock.owner)} since {since} (job {short(lock.job.key)} of "
        f"{lock.job.task}), free in {left} s at the latest unless its holder renews it"
    )


def _for_limit(waits: Wait, places: Sequence[PlaceRecord], now: float) -> str:
    since = f"a place of limit {short(waits.what)}, {waits.holder} since {moment(waits.since, now)}"
    running = [place for place in places if not place.of_rate]
    if running:
        holders = [
            f"{_process(place.owner)} since {moment(place.taken_at, now)} (job {short(place.job.key)} of "
            f"{place.job.task})"
            for place in running[:_NAMED]
        ]
        more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
        return f"waits for {since}; now by {', '.join(holders)}{more}"
    if places or not waits.holder.endswith("held"):
        return f"waits for {since}; it is tried again{_in(waits.until, now)}, or some minutes later"
    return f"waited for {since}, and free now: it runs when its message is delivered next"


def _lock(lock: LockRef) -> str:
    return f"the lock {short(':'.join(lock.scope))} of {short(lock.tenant)}"


def _process(owner: str) -> str:
    return owner.partition(" ")[0]


def _attempt(record: JobRecord) -> str:
    generation = f" of generation {record.generation}" if record.generation > 1 else ""
    return f"attempt {record.attempt}{generation}"


def _with_error(record: JobRecord) -> str:
    return f", with {record.error_type}: {record.error}" if record.error_type else ""


def _progress(record: JobRecord) -> str:
    progress = record.progress
    if progress is None:
        return ""
    total = "" if progress.total is None else f" of {progress.total:g}"
    text = f" ({progress.text})" if progress.text else ""
    return f", {progress.done:g}{total} done{text}"


def _in(until: float | None, now: float) -> str:
    if until is None:
        return ""
    left = round(until - now)
    return f" in {left} s" if left > 0 else f" (was due at {moment(until, now)})"


def moment(at: float, now: float) -> str:
    """The time of day, in UTC; with its date unless that is today's."""
    when, today = (datetime.fromtimestamp(each, timezone.utc) for each in (at, now))
    same_day = when.date() == today.date()
    return f"{when:%H:%M:%S}" if same_day else f"{when:%Y-%m-%d %H:%M:%S}"
