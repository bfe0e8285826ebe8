"""Texts about a job that waits or resumes, from the store's records."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from gwi_celery import blobs
from gwi_celery.errors import InvalidCall
from gwi_celery.stores.base import Checkpoint, CheckpointKind, Held, JobRecord, Limited, LockRef

#: Most names that a text lists, and most characters of one name or place.
_MOST, _LONGEST = 10, 60


def why_held(lock: LockRef, held: Held) -> str:
    """Which lock the job waits for, who holds it and until when."""
    until = datetime.now(timezone.utc) + timedelta(seconds=held.retry_after)
    process, _, message = held.by.partition(" ")
    return (
        f"the lock {'/'.join(map(short, lock.scope))} of tenant {short(lock.tenant)!r} is held by "
        f"{held.job.task} (job {short(held.job.key)}; process {process}"
        + (f", message {message}" if message else "")
        + f") until {until:%H:%M:%S} UTC, unless it is renewed"
    )


def why_limited(limited: Limited) -> str:
    """Which limit the job waits for."""
    limit = limited.limit
    usage = limited.why or limit.usage(limited.held)
    return f"the limit {short(limit.text)} has no free place: {usage}"


def where_resumed(record: JobRecord, checkpoints: Iterable[Checkpoint]) -> str:
    """What earlier attempts have recorded."""
    recorded = list(checkpoints)
    steps = [c for c in recorded if c.kind is CheckpointKind.STEP]
    cursors = [c for c in recorded if c.kind is CheckpointKind.CURSOR]
    values = [c for c in recorded if c.kind is CheckpointKind.VALUE]
    parts = []
    if steps:
        parts.append(f"steps {_listed([short(c.name) for c in steps])}")
    if cursors:
        places = [
            short(c.name) if c.deferred else f"{short(c.name)} at {short(repr(blobs.load(c.blob)))}"
            for c in cursors
        ]
        parts.append(f"cursor {_listed(places)}")
    if values:
        parts.append(f"values {_listed([short(c.name) for c in values])}")
    which = f"attempt {record.attempt}"
    if record.generation > 1:
        which += f" of generation {record.generation}"
    return f"{which} resumes: {'; '.join(parts)}" if parts else f"{which}: nothing was recorded yet"


def check_step(verb: str, task: str, from_step: str, names: list[str]) -> None:
    """Raises InvalidCall if the job has no such step from which to replay or fork it."""
    if from_step not in names:
        raise InvalidCall(
            f"can't {verb} {task} from {from_step!r}: its recorded steps are "
            + (", ".join(map(repr, names)) or "none")
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")


def short(text: str) -> str:
    """An id or a place, cut."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
