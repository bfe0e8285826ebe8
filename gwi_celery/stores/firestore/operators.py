"""What operators do to jobs and locks, the records of these actions, and the key that proves who is an
operator.

An action's document is named by the time left until a moment far ahead, so that a plain listing shows
the latest first and needs no index.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import Final
from uuid import uuid4

from gwi_celery.actions import KEPT, Action
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Unsettled
from gwi_celery.firestore.documents import Micros, Query, Write
from gwi_celery.stores import interventions
from gwi_celery.stores.firestore import blobs, upkeep
from gwi_celery.stores.firestore import claim as claims
from gwi_celery.stores.firestore.limits import freeing
from gwi_celery.stores.firestore.paths import SECOND, Paths, job_gc_at, step_gc_at
from gwi_celery.stores.firestore.records import CREATED, UPDATED, Job, job_of, lock_of
from gwi_celery.stores.firestore.tries import Tries
from gwi_celery.stores.interventions import CANCELLED_TTL
from gwi_celery.stores.paging import no_such_action
from gwi_celery.stores.protocol import ANY_PAYLOAD
from gwi_celery.stores.values import AttemptEnd, JobRef, JobStatus, LockRef
from gwi_celery.text import raw

ACTIONS: Final = "gwi_actions"
KEYS: Final = "gwi_keys"
#: Microseconds since the epoch: the year 5138.
_END: Final = 10**17
_ACTION_ID: Final = re.compile(r"[0-9]{18}-[0-9a-f]{8}")
#: Documents in one query.
_BATCH: Final = 300


def key(client: Client, paths: Paths) -> bytes:
    """The database's own key, created on first use."""
    name = f"{paths.base}/{KEYS}/operator"
    tries = Tries("make the operators' key")
    for _ in tries:
        found = client.read([name]).documents.get(name)
        if found is not None:
            return bytes(found.fields["data"])
        with tries.once():
            client.commit([documents.create(name, {"data": secrets.token_bytes(32)})])
    raise AssertionError


def keeping(client: Client, paths: Paths, action: Action) -> Write:
    """The write that records the action; it may be sent alone or with others, and repeated."""
    now = client.about_now()
    name = f"{paths.base}/{ACTIONS}/{_END - now:018}-{uuid4().hex[:8]}"
    gc_at = Micros(now + round(KEPT * SECOND))
    return Write(name, {"data": action.dumps(), "gc_at": gc_at})


def listed(
    client: Client, paths: Paths, tenant: str | None, limit: int, before: str | None
) -> list[Action]:
    """See :meth:`gwi_celery.stores.base.Store.list_actions`."""
    if before is not None and not _ACTION_ID.fullmatch(before):
        raise no_such_action(before)
    found: list[Action] = []
    while len(found) < limit:
        after = None if before is None else (f"{paths.base}/{ACTIONS}/{before}",)
        read = client.query(Query(paths.base, ACTIONS, after=after, limit=_BATCH)).documents
        for name, document in read.items():
            before = name.rpartition("/")[2]
            action = Action.loads(document.fields["data"], before)
            if tenant in (None, action.tenant):
                found.append(action)
        if len(read) < _BATCH:
            break
    return found[:limit]


def force_release(client: Client, paths: Paths, lock: LockRef, owner_nonce: str | None) -> bool:
    """See :meth:`gwi_celery.stores.base.Store.force_release`."""
    name = paths.lock(lock)
    #: (token, whether it was live) of the lock that a commit without an answer may have freed.
    sent: tuple[int | None, bool] | None = None
    done = interventions.releasing(lock)
    kept = keeping(client, paths, done)
    tries = Tries("free a lock")
    for _ in tries:
        read = client.read([name])
        document = read.documents.get(name)
        stored = None if document is None else lock_of(document)
        if sent is not None and (stored is None or stored.fence != sent[0]):
            live = sent[1]
            break
        if stored is None or not interventions.may_free(stored.nonce, owner_nonce):
            return False
        live = not stored.expired(read.read_time)
        writes = [documents.delete(name, stored.version), *freeing(paths, stored)]
        if owner_nonce is None:
            writes.append(kept)
        with tries.once():
            try:
                client.commit(writes)
            except Unsettled:
                sent = stored.fence, live
                raise
            break
    if owner_nonce is None:
        done.log()
    return live


def cancel(client: Client, paths: Paths, job: JobRef, reason: str, in_advance: bool) -> bool:
    """See :meth:`gwi_celery.stores.base.Store.cancel`."""
    name = paths.job(job)
    by = claims.new_era()  # names this very cancellation
    done = interventions.cancelling(job, reason)
    kept = keeping(client, paths, done)
    tries = Tries("cancel a job")
    for _ in tries:
        read = client.read([name])
        document = read.documents.get(name)
        stored = None if document is None else job_of(document)
        known = None if stored is None or stored.expired(read.read_time) else stored
        if known is not None and known.cancelled_by == by:
            break  # done: only its answer was lost
        if not interventions.may_cancel(known, in_advance=in_advance):
            return False
        with tries.once():
            if known is None:
                _cancel_unknown(client, paths, job, stored, reason, by, kept)
            else:
                _cancel(client, paths, known, reason, by, kept, read.read_time)
            break
    done.log()
    return True


def _cancel_unknown(
    client: Client,
    paths: Paths,
    job: JobRef,
    expired: Job | None,
    reason: str,
    by: str,
    kept: Write,
) -> None:
    name = paths.job(job)
    record = replace(
        claims.unclaimed(job, expired),
        status=JobStatus.CANCELLED,
        fingerprint=ANY_PAYLOAD,
        result_ttl=CANCELLED_TTL,
        cancelled_by=by,
    )
    era_name = paths.era(name, record.era)
    outcome, pieces = blobs.pack(
        client, raw(reason), era_name, step_gc_at(client, CANCELLED_TTL), record.texts
    )
    fields = replace(record, outcome=outcome).fields()
    fields["gc_at"] = Micros(job_gc_at(client, CANCELLED_TTL))
    version = None if expired is None else expired.version
    write = documents.replace(name, fields, version, server_times=[UPDATED, CREATED])
    client.commit([write, *pieces, kept])
    if expired is not None:
        upkeep.sweep(client, paths, name, expired)


def _cancel(
    client: Client, paths: Paths, job: Job, reason: str, by: str, kept: Write, now: int
) -> None:
    """Write the outcome over the record as it was read, and free the job's lock if it holds it."""
    name, lock_name = (
        paths.job(job.ref),
        paths.lock_by_id(job.ref.tenant, job.lock_id),
    )
    era_name = paths.era(name, job.era)
    outcome, pieces = blobs.pack(
        client, raw(reason), era_name, step_gc_at(client, job.result_ttl), job.texts
    )
    history = job.history.over(job.running, AttemptEnd("cancelled"), now / SECOND)
    data = {
        "outcome": outcome.fields(),
        "fence": job.fence,
        "cancelled_by": by,
        "history": history.dumps(),
    }
    writes = [
        documents.change(
            name,
            {
                "status": JobStatus.CANCELLED.value,
                "gc_at": Micros(job_gc_at(client, job.result_ttl)),
                "data": data,
            },
            job.version,
            mask=["status", "gc_at", *(f"data.{key}" for key in data)],
            server_times=[UPDATED],
        )
    ]
    lock_document = client.read([lock_name]).documents.get(lock_name)
    if lock_document is not None and (lock := lock_of(lock_document)).fence == job.fence:
        writes += [documents.delete(lock_name, lock.version), *freeing(paths, lock)]
    client.commit([*writes, *pieces, kept])
