"""The writes of a lease's holder: each is one commit that names the versions of lock and record.

One alone is not enough: the same job may have been claimed under another lock meanwhile, and another
job may have taken the lock. A renewal names the record too, by a write that changes nothing in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from gwi_celery import forks
from gwi_celery.errors import (
    CursorWentBack,
    JobCancelled,
    LeaseLost,
    StepNameReused,
    StoreUnusable,
)
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Micros, Write
from gwi_celery.stores import protocol
from gwi_celery.stores.base import (
    AttemptEnd,
    Checkpoint,
    JobStatus,
    Lease,
    Outcome,
    Progress,
    StoredResult,
)
from gwi_celery.stores.firestore import blobs, checkpoints
from gwi_celery.stores.firestore.limits import freeing
from gwi_celery.stores.firestore.paths import (
    SECOND,
    STEP_KEPT,
    Paths,
    job_gc_at,
    lock_gc_at,
    step_gc_at,
)
from gwi_celery.stores.firestore.reads import Seen, reason_of, see
from gwi_celery.stores.firestore.records import (
    UPDATED,
    Blob,
    Job,
    Lock,
    Step,
    checksum,
    put_text,
    step_of,
)
from gwi_celery.stores.firestore.results import ResultWrite
from gwi_celery.stores.firestore.tries import Tries
from gwi_celery.stores.history import History, end_of


@dataclass
class Holding:
    """What a holder knows of its documents: shared by all leases of one claim in this process."""

    job: Job
    lock: Lock
    #: Checkpoints that this process has saved or read, by name.
    steps: dict[str, Step] = field(default_factory=dict)
    #: Whether ``steps`` has all checkpoints of the job.
    complete: bool = False
    #: Renewals and saves both change the versions, so only one runs at a time.
    mutex: Any = field(default_factory=forks.rlock)


class Holder:
    """One operation of a lease's holder."""

    def __init__(self, client: Client, paths: Paths, lease: Lease) -> None:
        self._client = client
        self._paths = paths
        self._lease = lease
        self._job_name = paths.job(lease.job)
        self._lock_name = paths.lock(lease.lock)

    # --- operations ---------------------------------------------------------------------------

    def renew(self) -> Lease:
        with self._holding("renew a lease") as (hold, tries):
            for _ in tries:
                with tries.once():
                    self._renew(hold)
                    return self._renewed(hold)
        raise AssertionError

    def save(self, checkpoint: Checkpoint) -> Lease:
        name, sha = checkpoint.name, checksum(checkpoint.blob)
        packed: tuple[Blob, list[Write]] | None = None
        with self._holding("save a checkpoint", step=name) as (hold, tries):
            for _ in tries:
                if name not in hold.steps and not hold.complete and checkpoint.version > 1:
                    self._look(hold, name)  # another process has saved it before
                wanted = self._must_write(hold, checkpoint, sha)
                stored = hold.steps.get(name)
                if not wanted:
                    with tries.once():
                        self._renew(hold)
                        return self._renewed(hold)
                    continue
                if packed is None:
                    packed = self._pack(hold, checkpoint.blob, [checkpoint.name])
                with tries.once():
                    self._save(hold, checkpoint, stored, *packed)
                    return self._renewed(hold)
        raise AssertionError

    def load(self) -> list[Checkpoint]:
        with self._holding("load checkpoints") as (hold, _):
            steps = checkpoints.steps_of(self._client, self._paths, hold.job)
            if len(steps) != hold.job.steps:
                self._look(hold)  # if the lease is lost, another attempt may have replaced them
                steps = checkpoints.steps_of(self._client, self._paths, hold.job)
            if len(steps) < hold.job.steps:  # there may be more: values that were put just now
                raise StoreUnusable(
                    f"{hold.job.steps - len(steps)} of {hold.job.steps} checkpoints of "
                    f"{self._lease.job.task} are gone: the TTL policy deletes those that no "
                    f"attempt has loaded for {STEP_KEPT // (86_400 * SECOND)} days. Replay the job "
                    "from its start"
                )
            gc_at = step_gc_at(self._client, self._lease.result_ttl)
            checkpoints.keep(self._client, self._paths, hold.job, steps, gc_at)
            hold.steps = {step.name: _without_bytes(step) for step in steps}
            hold.complete = True
            read = [step for step in steps if step.blob.inline is not None]
            whole = checkpoints.checkpoints_of(self._client, self._paths, hold.job, read)
            known = {checkpoint.name: checkpoint for checkpoint in whole}
            return [known.get(step.name) or step.checkpoint(None) for step in steps]

    def fetch(self, name: str) -> Checkpoint | None:
        with self._holding("load a checkpoint") as (hold, _):
            step = self._stored(hold, name)
            if step is None:
                self._look(hold)  # if the lease is lost, another attempt may have replaced it
                step = self._stored(hold, name)
            if step is None:
                return None
            hold.steps[name] = _without_bytes(step)
            return checkpoints.checkpoints_of(self._client, self._paths, hold.job, [step])[0]

    def _stored(self, hold: Holding, name: str) -> Step | None:
        step_name = self._paths.step(self._paths.era(self._job_name, hold.job.era), name)
        document = self._client.read([step_name]).documents.get(step_name)
        return None if document is None else step_of(document)

    def finish(self, outcome: Outcome, stored_result: StoredResult | None = None) -> None:
        packed: tuple[Blob, list[Write]] | None = None
        fence = self._lease.fence
        result = None
        if stored_result is not None:
            result = ResultWrite(self._client, self._paths, stored_result)
        with self._holding("finish a job", finishing=True, result=result) as (hold, tries):
            for _ in tries:
                if self._is_finished(hold.job, outcome):
                    return
                if packed is None:
                    chunks = [] if result is None else result.pieces
                    packed = self._pack(hold, outcome.blob, hold.job.texts, chunks)
                blob, pieces = packed
                history = self._over(hold, end_of(outcome))
                data = {
                    "outcome": blob.fields(),
                    "finished": fence,
                    "history": history.dumps(),
                    "failed": protocol.failed_after(hold.job, outcome.status),
                    "result_ttl": float(self._lease.result_ttl),
                    "fence": fence,
                }
                if stored_result is not None:
                    data["result_of"] = put_text(stored_result.task_id)
                gc_at = job_gc_at(self._client, self._lease.result_ttl)
                fields = {"status": outcome.status.value, "gc_at": Micros(gc_at), "data": data}
                mask = ["status", "gc_at", *(f"data.{key}" for key in data)]
                put_error(history, hold.job.history, fields, mask)
                with tries.once():
                    also = [] if result is None else result.writes()
                    self._end(hold, fields, mask, [*also, *pieces])
                    if result is not None:
                        result.written()
                    return

    def _is_finished(self, job: Job, outcome: Outcome) -> bool:
        recorded = job.outcome
        # A record that has been claimed again has no outcome to compare.
        same_bytes = recorded is None or recorded.sha == checksum(outcome.blob)
        finished = job.finished
        return protocol.is_finished(self._lease, job, finished, outcome, same_bytes=same_bytes)

    def release(self, end: AttemptEnd) -> None:
        try:
            with self._holding("release a lock") as (hold, tries):
                for _ in tries:
                    history = self._over(hold, end)
                    data: dict[str, Any] = {"fence": self._lease.fence, "history": history.dumps()}
                    fields = {"status": JobStatus.PENDING.value, "data": data}
                    mask = ["status", "data.fence", "data.history"]
                    put_error(history, hold.job.history, fields, mask)
                    with tries.once():
                        self._end(hold, fields, mask)
                        return
        except (LeaseLost, JobCancelled):
            return

    def progress(self, progress: Progress) -> Lease:
        with self._holding("record progress") as (hold, tries):
            for _ in tries:
                history = hold.job.history.progressing(progress, self._client.about_now() / SECOND)
                data = {"fence": self._lease.fence, "history": history.dumps()}
                record = documents.change(
                    self._job_name,
                    {"data": data},
                    hold.job.version,
                    mask=["data.fence", "data.history"],
                )
                with tries.once():
                    written = self._client.commit([self._renewal(hold), record])
                    hold.lock = replace(hold.lock, version=written.versions[0])
                    hold.job = replace(hold.job, history=history, version=written.versions[1])
                    return self._renewed(hold)
        raise AssertionError

    def _over(self, hold: Holding, end: AttemptEnd) -> History:
        now = self._client.about_now() / SECOND
        return hold.job.history.over(hold.job.running, end, now)

    # --- commits ------------------------------------------------------------------------------

    def _renew(self, hold: Holding) -> None:
        written = self._client.commit(
            [
                self._renewal(hold),
                documents.check(self._job_name, hold.job.version),
            ]
        )
        hold.lock = replace(hold.lock, version=written.versions[0])

    def _save(
        self,
        hold: Holding,
        checkpoint: Checkpoint,
        stored: Step | None,
        blob: Blob,
        pieces: list[Write],
    ) -> None:
        gc_at = step_gc_at(self._client, self._lease.result_ttl)
        job, step, writes = checkpoints.recording(
            self._paths, hold.job, checkpoint, stored, blob, gc_at
        )
        written = self._client.commit([self._renewal(hold), *writes, *pieces])
        hold.lock = replace(hold.lock, version=written.versions[0])
        hold.job = replace(job, version=written.versions[1])
        hold.steps[checkpoint.name] = _without_bytes(replace(step, version=written.versions[2]))
        if stored is not None:
            blobs.drop(self._client, [stored.blob])

    def _end(
        self,
        hold: Holding,
        fields: Mapping[str, Any],
        mask: Sequence[str],
        also: Sequence[Write] = (),
    ) -> None:
        self._client.commit(
            [
                documents.delete(self._lock_name, hold.lock.version),
                *freeing(self._paths, hold.lock),
                documents.change(
                    self._job_name, fields, hold.job.version, mask=mask, server_times=[UPDATED]
                ),
                *also,
            ]
        )

    def _renewal(self, hold: Holding) -> Write:
        return renewal(
            self._client, self._lock_name, hold.lock.version, self._lease.ttl, self._lease.fence
        )

    # --- how ----------------------------------------------------------------------------------

    def _renewed(self, hold: Holding) -> Lease:
        return replace(self._lease, version=hold)

    @contextmanager
    def _holding(
        self,
        doing: str,
        *,
        step: str | None = None,
        finishing: bool = False,
        result: ResultWrite | None = None,
    ) -> Iterator[tuple[Holding, Tries]]:
        """What is known of the documents, for one operation at a time; and the tries of its commit.

        The documents are read before each try but the first; before that too if nothing is known.
        """
        hold = self._lease.version
        known = isinstance(hold, Holding)
        if not known:
            hold = _nothing_known(self._lease)
        with hold.mutex:

            def look() -> None:
                self._look(hold, step, finishing, result)

            if not known or (result is not None and result.unsure):
                look()
            yield hold, Tries(doing, look)

    def _look(
        self,
        hold: Holding,
        step: str | None = None,
        finishing: bool = False,
        result: ResultWrite | None = None,
    ) -> None:
        """Read the current state. Raises LeaseLost or JobCancelled unless the lease may write.

        With ``finishing``, it is no error that the lease has finished: ``hold.job.finished`` tells.
        """
        wanted = []
        if step is not None and hold.job.era:
            era_name = self._paths.era(self._job_name, hold.job.era)
            wanted.append(self._paths.step(era_name, step))
        if result is not None:
            wanted.append(result.name)
        seen = see(self._client, self._paths, self._lease.job, self._lease.lock, wanted)
        if result is not None:
            others = {document.name: document for document in seen.others}
            result.look(others.get(result.name), seen.now)
        if finishing and seen.job is not None and seen.job.finished == self._lease.fence:
            hold.job = seen.job
            return
        job, hold.lock = self._owned(seen)
        era_changed = job.era != hold.job.era
        hold.job = job
        if era_changed:  # nothing was known yet
            hold.steps, hold.complete = {}, job.steps == 0
            if step is not None:
                self._look(hold, step)
        elif step is not None:
            hold.steps.pop(step, None)
            for document in seen.others:
                hold.steps[step] = _without_bytes(step_of(document))

    def _owned(self, seen: Seen) -> tuple[Job, Lock]:
        """The record and the lock, if both have the lease's token. Raises LeaseLost, JobCancelled."""
        job, lock = seen.live_job, seen.lock

        def reason() -> str:
            assert job is not None
            return reason_of(self._client, self._paths, job)

        protocol.check_holder(
            self._lease, job, None if lock is None else lock.known(seen.now), reason
        )
        assert job is not None
        assert lock is not None
        return job, lock

    def _must_write(self, hold: Holding, checkpoint: Checkpoint, sha: bytes) -> bool:
        task = self._lease.job.task
        try:
            return protocol.must_write(task, _stored(hold, checkpoint.name, sha), checkpoint)
        except (StepNameReused, CursorWentBack):
            # If the lease is lost, that error takes precedence.
            self._look(hold, checkpoint.name)
            return protocol.must_write(task, _stored(hold, checkpoint.name, sha), checkpoint)

    def _pack(
        self,
        hold: Holding,
        blob: bytes,
        beside: Iterable[str | None],
        others: Sequence[Write] = (),
    ) -> tuple[Blob, list[Write]]:
        """The blob's field, and the last of its chunks and of ``others``; the first are written here.

        ``beside`` are the other texts of the document that gets the blob.
        """
        era_name = self._paths.era(self._job_name, hold.job.era)
        gc_at = step_gc_at(self._client, self._lease.result_ttl)
        packed, pieces = blobs.pack(self._client, blob, era_name, gc_at, beside)
        return packed, blobs.send_ahead(self._client, [*pieces, *others])


def put_error(history: History, before: History, fields: dict[str, Any], mask: list[str]) -> None:
    """Add the last error to a record's changes if it differs from ``before``'s; "" removes it."""
    if (history.error_type, history.error) == (before.error_type, before.error):
        return
    mask += ["error", "data.error"]
    if history.error_type:
        fields["error"] = history.error_type
        fields["data"] = {**fields["data"], "error": history.error}


def renewal(client: Client, lock_name: str, version: int, ttl: float, fence: int) -> Write:
    """The write after which a lease expires its TTL from now."""
    data = {"beat": os.urandom(6).hex(), "fence": fence, "ttl": float(ttl)}
    fields = {"gc_at": Micros(lock_gc_at(client, ttl)), "data": data}
    mask = ["gc_at", *(f"data.{key}" for key in data)]
    return documents.change(lock_name, fields, version, mask=mask)


def _nothing_known(lease: Lease) -> Holding:
    """For a lease that another process claimed: the record is read before anything else."""
    job = Job(
        ref=lease.job,
        run_id=None,
        status=JobStatus.RUNNING,
        fingerprint="",
        submission="",
        failed=(),
        generation=lease.generation,
        attempt=0,
        crashes=0,
        fence=lease.fence,
        lock_id=lease.lock.id,
        result_ttl=lease.result_ttl,
        era="",
        steps=0,
        ordinal=0,
        finished=None,
        outcome=None,
    )
    return Holding(job, Lock(lease.lock, "", lease.nonce, lease.job, lease.ttl, lease.fence))


def _without_bytes(step: Step) -> Step:
    """The checkpoint without its bytes, which a job would hold for as long as it runs."""
    if step.blob.inline is None:
        return step
    return replace(step, blob=replace(step.blob, inline=b""))


def _stored(hold: Holding, name: str, sha: bytes) -> protocol.Stored | None:
    step = hold.steps.get(name)
    return None if step is None else protocol.Stored(step.kind, step.number, step.blob.sha == sha)
