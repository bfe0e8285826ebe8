"""Any sequence of claims, writes, crashes and lost answers keeps the store's invariants.

Workers know only the leases they were answered with; a trail beside them knows what was granted
and what was written, and says what each operation must answer. The numbers in the comments are the
invariants':

1. fencing tokens of a lock strictly grow
2. a stale holder's write changes nothing
3. a terminal state never changes within its generation
4. another payload never claims nor overwrites, but after a failure, from the start
5. a step never changes, a cursor's version never goes back
6. an attempt that starts later sees every recorded step
9. once the clock has passed the lease's TTL, the job can be taken over
10. another tenant's data stay as they are

``STATEFUL_EXAMPLES`` in the environment sets the number of sequences tried.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gwi_celery.errors import (
    CursorWentBack,
    InvalidCall,
    JobCancelled,
    LeaseLost,
    StepNameReused,
    VersionConflict,
)
from gwi_celery.ids import fingerprint
from gwi_celery.stores.base import (
    Cancelled,
    Checkpoint,
    CheckpointKind,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobRecord,
    JobRef,
    JobStatus,
    Lease,
    LockRef,
    Mismatch,
    Outcome,
    Replay,
)
from gwi_celery.stores.sqlite import SqliteStore
from tests.clocks import FakeClock
from tests.contract.stores import cursor, failure, step, success, value
from tests.machine import examples

LEASE_TTL = 8.0
RESULT_TTL = 64.0

#: Seconds, all exact as floating point numbers; few, so that leases often end at the same moment.
SECONDS = st.sampled_from([0.5, 4.0, 8.0, 9.0, 65.0])

#: Names that would meet if they were joined: "acme/eu" + "scan" and "acme" + "eu/scan".
TENANTS = ("acme", "acme/eu")
JOBS = [
    JobRef(tenant, task, key)
    for tenant in TENANTS
    for task, key in [("scan", "k"), ("eu/scan", "k"), ("scan", "k2")]
]
SCOPES = [("r1",), ("eu", "r1")]

#: The second stands for another payload under the same key: it differs deep inside only.
PAYLOADS = [{"pr": {"id": 1}}, {"pr": {"id": 2}}]


@dataclass
class Worker:
    """What one worker knows: the leases it was answered with, and what it asked last."""

    name: str
    #: Its own lease is the last one. The earlier ones are for acting as a zombie.
    leases: list[Lease] = field(default_factory=list)
    #: The last request, to be sent once more.
    again: Callable[[], None] | None = None


@dataclass
class Hold:
    """A lock's current grant."""

    fence: int
    nonce: str
    job: JobRef
    expires: float


@dataclass
class Job:
    """What the trail knows of a job."""

    #: None: cancelled before its payload was known.
    fingerprint: str | None
    status: JobStatus
    fence: int
    lock: LockRef | None
    submission: str
    generation: int = 1
    attempt: int = 1
    crashes: int = 0
    outcome: bytes | None = None
    expires: float | None = None
    #: Fence of the attempt that wrote the last outcome.
    finished: int | None = None
    failed: set[str] = field(default_factory=set)
    #: In the order of first saving.
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)


class Trail:
    """What was granted and written: says what the store must answer next."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.jobs: dict[JobRef, Job] = {}
        self.holds: dict[LockRef, Hold] = {}
        #: Largest fencing token ever granted, of each lock.
        self.granted: dict[LockRef, int] = {}
        #: Every outcome seen, by job, the moment its record began, and generation.
        self.outcomes: dict[tuple[JobRef, float, int], tuple[JobStatus, bytes | None]] = {}
        #: Cursors seen: likewise, but by name; replays make them anew.
        self.versions: dict[tuple[JobRef, float, int, str], int] = {}

    def job(self, ref: JobRef) -> Job | None:
        """The job, unless its outcome's time is over: then it counts as gone."""
        job = self.jobs.get(ref)
        if job is not None and job.expires is not None and job.expires <= self.clock.now:
            del self.jobs[ref]
            return None
        return job

    def live(self, lease: Lease) -> Job | None:
        """The lease's job, if both the lock and the record are this very claim's."""
        job, hold = self.job(lease.job), self.holds.get(lease.lock)
        if job is None or hold is None or job.status is not JobStatus.RUNNING:
            return None
        if (job.lock, job.fence) != (lease.lock, lease.fence) or hold.fence != lease.fence:
            return None
        return job

    # --- claims -------------------------------------------------------------------------------

    def expected(self, request: ClaimRequest) -> type[ClaimAnswer] | type[InvalidCall]:
        job = self.job(request.job)
        if job is not None and self._another(job, request) and not self._corrects(job, request):
            return Mismatch  # 4
        if job is not None and job.status.terminal:
            if self._replays(job, request):
                assert request.replay is not None
                if request.replay.from_step not in (None, *job.checkpoints):
                    return InvalidCall
            elif job.status is not JobStatus.FAILED or request.submission in job.failed:
                return Cancelled if job.status is JobStatus.CANCELLED else Completed  # 3
        hold = self.holds.get(request.lock)
        if hold is not None and self._same(hold, job, request):
            return Claimed
        return Claimed if self.held_by(request) is None else Held  # 9

    def held_by(self, request: ClaimRequest) -> Hold | None:
        """Who holds the lock that is asked for, or the job under another one."""
        own = self._own(self.job(request.job))
        for hold in (self.holds.get(request.lock), own):
            if hold is not None and hold.expires > self.clock.now:
                return hold
        return None

    def _own(self, job: Job | None) -> Hold | None:
        """The hold of the job's last attempt, be it expired."""
        if job is None or job.lock is None or job.status is not JobStatus.RUNNING:
            return None
        hold = self.holds.get(job.lock)
        return hold if hold is not None and hold.fence == job.fence else None

    def claimed(self, request: ClaimRequest, answer: Claimed) -> None:
        """Checks the grant, and writes it down."""
        lease, lock, now = answer.lease, request.lock, self.clock.now
        job, hold = self.job(request.job), self.holds.get(lock)
        if hold is not None and self._same(hold, job, request):
            assert lease.fence == hold.fence
            hold.expires = now + request.lease_ttl
            return
        assert lease.fence > self.granted.get(lock, 0)  # 1
        if self._own(job) is not None:
            assert job is not None
            assert job.lock is not None
            del self.holds[job.lock]
        self.granted[lock] = lease.fence
        self.holds[lock] = Hold(lease.fence, request.nonce, request.job, now + request.lease_ttl)
        if job is None:
            job = self.jobs[request.job] = Job(
                request.fingerprint, JobStatus.RUNNING, lease.fence, lock, request.submission
            )
            return
        if job.status.terminal:
            if self._replays(job, request):
                self._forget(job, request.replay)
            elif self._another(job, request):
                job.checkpoints.clear()
            job.generation, job.attempt, job.crashes = job.generation + 1, 1, 0
        else:
            job.attempt += 1
            job.crashes += job.status is JobStatus.RUNNING
        job.fingerprint, job.submission = request.fingerprint, request.submission
        job.status, job.fence, job.lock = JobStatus.RUNNING, lease.fence, lock
        job.outcome = job.expires = None

    @staticmethod
    def _another(job: Job, request: ClaimRequest) -> bool:
        return job.fingerprint not in (None, request.fingerprint)

    @staticmethod
    def _corrects(job: Job, request: ClaimRequest) -> bool:
        replays = request.replay is not None and request.replay.from_step is not None
        fresh = request.submission not in job.failed
        return job.status is JobStatus.FAILED and fresh and not replays

    @staticmethod
    def _replays(job: Job, request: ClaimRequest) -> bool:
        return request.replay is not None and request.replay.generation == job.generation + 1

    @staticmethod
    def _same(hold: Hold, job: Job | None, request: ClaimRequest) -> bool:
        if job is None or job.fence != hold.fence:
            return False
        return (hold.nonce, hold.job) == (request.nonce, request.job)

    @staticmethod
    def _forget(job: Job, replay: Replay | None) -> None:
        assert replay is not None
        names = list(job.checkpoints)
        first = 0 if replay.from_step is None else names.index(replay.from_step)
        for name in names[first:]:
            del job.checkpoints[name]

    # --- the holder's writes ------------------------------------------------------------------

    def refused(self, job: Job, checkpoint: Checkpoint) -> type[Exception] | None:
        """The error that saving must end in; None if it is accepted."""
        stored = job.checkpoints.get(checkpoint.name)
        if stored is not None and stored.kind is not checkpoint.kind:
            return StepNameReused
        if stored is None or stored.blob == checkpoint.blob:
            return None
        if stored.kind is CheckpointKind.STEP:
            return StepNameReused
        return None if checkpoint.version > stored.version else CursorWentBack

    def saved(self, lease: Lease, job: Job, checkpoint: Checkpoint) -> None:
        stored = job.checkpoints.get(checkpoint.name)
        if stored is None or checkpoint.version > stored.version:
            job.checkpoints[checkpoint.name] = checkpoint
            if checkpoint.kind is not CheckpointKind.VALUE:
                job.crashes = 0
        self.renewed(lease)

    def put(self, ref: JobRef, name: str, blob: bytes, expected: int) -> type[Exception] | None:
        """The error that a value put without a lease must end in; None if it is written, or was."""
        job = self.job(ref)
        if job is None or job.status.terminal:
            return InvalidCall  # 3
        stored = job.checkpoints.get(name)
        if stored is not None and stored.kind is not CheckpointKind.VALUE:
            return StepNameReused  # 5
        version = 0 if stored is None else stored.version
        if version == expected:
            job.checkpoints[name] = value(name, blob, expected + 1)
            return None
        done = stored is not None and (version, stored.blob) == (expected + 1, blob)
        return None if done else VersionConflict

    def renewed(self, lease: Lease) -> None:
        self.holds[lease.lock].expires = self.clock.now + lease.ttl

    def finished(self, lease: Lease, job: Job, outcome: Outcome) -> None:
        job.status, job.outcome = outcome.status, outcome.blob
        job.expires = self.clock.now + lease.result_ttl
        job.finished = lease.fence
        if outcome.status is JobStatus.FAILED:
            job.failed.add(job.submission)
        del self.holds[lease.lock]

    def released(self, lease: Lease, job: Job) -> None:
        job.status = JobStatus.PENDING
        del self.holds[lease.lock]


class StoreMachine(RuleBasedStateMachine):
    workers: list[Worker]
    #: All times are multiples of it, seconds. A server whose own clock goes on while a test runs
    #: needs one that is long beside that.
    unit = 1.0
    clock: FakeClock
    store: Any

    def open(self) -> None:
        self.clock = FakeClock()
        self.store = SqliteStore(None, clock=self.clock)

    def move_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def same_time(self, one: float | None, other: float | None) -> bool:
        """Whether two times are the same, but for what a server's own clock went on meanwhile."""
        if one is None or other is None or self.unit == 1.0:
            return one == other
        return abs(one - other) < self.unit / 4

    @initialize()
    def start(self) -> None:
        self.open()
        self.trail = Trail(self.clock)
        self.workers = [Worker(name) for name in ("host:1", "host:2", "host:3")]
        self.count = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.nothing_is_stuck_for_good()
            self.store.close()

    # --- claims -------------------------------------------------------------------------------

    @rule(
        worker=st.integers(0, 2),
        job=st.sampled_from(JOBS),
        scope=st.sampled_from(SCOPES),
        payload=st.sampled_from([0, 0, 0, 1]),
        submission=st.sampled_from(["s1", "s2", "s3"]),
        answer_lost=st.booleans(),
    )
    def claim(
        self,
        worker: int,
        job: JobRef,
        scope: tuple[str, ...],
        payload: int,
        submission: str,
        answer_lost: bool,
    ) -> None:
        """A first delivery, a duplicate, or another payload: as chance has it."""
        request = self.request(job, LockRef(job.tenant, scope), worker, payload, submission)
        self.send_claim(self.workers[worker], request, answer_lost)

    @rule(
        worker=st.integers(0, 2),
        job=st.sampled_from(JOBS),
        scope=st.sampled_from(SCOPES),
        generation=st.sampled_from([1, 1, 1, 0, 2]),
        place=st.integers(-1, 4),
        answer_lost=st.booleans(),
    )
    def replay(
        self,
        worker: int,
        job: JobRef,
        scope: tuple[str, ...],
        generation: int,
        place: int,
        answer_lost: bool,
    ) -> None:
        known = self.trail.job(job)
        names = list(known.checkpoints) if known is not None else []
        replay = Replay(
            generation=(known.generation if known is not None else 0) + generation,
            from_step=names[place] if 0 <= place < len(names) else None,
        )
        request = self.request(job, LockRef(job.tenant, scope), worker, 0, "replay", replay)
        self.send_claim(self.workers[worker], request, answer_lost)

    def request(
        self,
        job: JobRef,
        lock: LockRef,
        worker: int,
        payload: int,
        submission: str,
        replay: Replay | None = None,
    ) -> ClaimRequest:
        return ClaimRequest(
            job=job,
            lock=lock,
            run_id="r1",
            fingerprint=fingerprint(PAYLOADS[payload]),
            submission=submission,
            owner=self.workers[worker].name,
            nonce=f"n{next(self.count)}",
            lease_ttl=LEASE_TTL * self.unit,
            result_ttl=RESULT_TTL * self.unit,
            replay=replay,
        )

    def send_claim(self, worker: Worker, request: ClaimRequest, answer_lost: bool) -> None:
        """If the answer is lost, the worker holds what it doesn't know of: it may ask again."""
        worker.again = lambda: self.send_claim(worker, request, False)
        expected = self.trail.expected(request)
        known = self.trail.job(request.job)
        answer: Any
        try:
            answer = self.store.claim(request)
        except InvalidCall as exc:
            answer = exc
        assert isinstance(answer, expected), f"{answer}, not {expected.__name__}"
        if isinstance(answer, Claimed):
            self.trail.claimed(request, answer)
            known = self.trail.job(request.job)
            assert known is not None
            self.check_attempt(answer, known)
            if not answer_lost:
                worker.leases.append(answer.lease)
        elif isinstance(answer, (Completed, Cancelled, Mismatch)):
            assert known is not None
            assert (answer.record.status, answer.record.outcome) == (known.status, known.outcome)
        elif isinstance(answer, Held):
            hold = self.trail.held_by(request)
            assert hold is not None
            assert answer.job == hold.job
            assert self.same_time(answer.retry_after, hold.expires - self.clock.now)

    def check_attempt(self, answer: Claimed, known: Job) -> None:
        """6: what was recorded is there for the attempt, in its order."""
        loaded = self.store.load(answer.lease)
        assert [(c.name, c.blob, c.version) for c in loaded] == [
            (c.name, c.blob, c.version) for c in known.checkpoints.values()
        ]
        assert answer.has_checkpoints == bool(known.checkpoints)
        assert (answer.lease.fence, answer.lease.generation) == (known.fence, known.generation)
        assert answer.record.generation == known.generation

    # --- the holders' writes, with the lease they have or (zombies) one they had ----------------

    def lease(self, worker: int, back: int) -> Lease | None:
        leases = self.workers[worker].leases
        return leases[-1 - back] if back < len(leases) else None

    @staticmethod
    def refusal(call: Callable[[], object]) -> BaseException | None:
        """The error that a write ends in; None if it is accepted."""
        try:
            call()
        except (LeaseLost, JobCancelled, StepNameReused, CursorWentBack) as exc:
            return exc
        return None

    @rule(worker=st.integers(0, 2), back=st.sampled_from([0, 0, 1, 2]))
    def renew(self, worker: int, back: int) -> None:
        lease = self.lease(worker, back)
        if lease is not None:
            self.send_renewal(self.workers[worker], lease)

    def send_renewal(self, worker: Worker, lease: Lease) -> None:
        worker.again = lambda: self.send_renewal(worker, lease)
        error = self.refusal(lambda: self.store.renew(lease))
        if self.trail.live(lease) is None:
            assert error is not None  # 2
        else:
            assert error is None
            self.trail.renewed(lease)

    @rule(
        worker=st.integers(0, 2),
        back=st.sampled_from([0, 0, 1, 2]),
        name=st.sampled_from(["one", "two", "three"]),
        blob=st.sampled_from([b"1", b"1", b"1", b"2"]),
    )
    def save_step(self, worker: int, back: int, name: str, blob: bytes) -> None:
        lease = self.lease(worker, back)
        if lease is not None:
            self.send_save(self.workers[worker], lease, step(name, blob))

    @rule(
        worker=st.integers(0, 2),
        back=st.sampled_from([0, 0, 1, 2]),
        version=st.integers(1, 4),
        blob=st.sampled_from([b"1", b"2"]),
    )
    def move_cursor(self, worker: int, back: int, version: int, blob: bytes) -> None:
        lease = self.lease(worker, back)
        if lease is not None:
            self.send_save(self.workers[worker], lease, cursor("cursor", blob, version))

    @rule(
        worker=st.integers(0, 2),
        back=st.sampled_from([0, 0, 1, 2]),
        version=st.integers(1, 4),
        blob=st.sampled_from([b"1", b"2"]),
    )
    def save_value(self, worker: int, back: int, version: int, blob: bytes) -> None:
        lease = self.lease(worker, back)
        if lease is not None:
            self.send_save(self.workers[worker], lease, value("value", blob, version))

    def send_save(self, worker: Worker, lease: Lease, checkpoint: Checkpoint) -> None:
        worker.again = lambda: self.send_save(worker, lease, checkpoint)
        error = self.refusal(lambda: self.store.save(lease, checkpoint))
        job = self.trail.live(lease)
        if job is None:
            assert isinstance(error, (LeaseLost, JobCancelled))  # 2
            return
        refused = self.trail.refused(job, checkpoint)
        if refused is None:
            assert error is None
            self.trail.saved(lease, job, checkpoint)
        else:
            assert isinstance(error, refused)  # 5

    @rule(
        worker=st.integers(0, 2),
        back=st.sampled_from([0, 0, 1, 2]),
        outcome=st.sampled_from([success(b"1"), success(b"2"), failure()]),
    )
    def finish(self, worker: int, back: int, outcome: Outcome) -> None:
        lease = self.lease(worker, back)
        if lease is not None:
            self.send_finish(self.workers[worker], lease, outcome)

    def send_finish(self, worker: Worker, lease: Lease, outcome: Outcome) -> None:
        worker.again = lambda: self.send_finish(worker, lease, outcome)
        error = self.refusal(lambda: self.store.finish(lease, outcome))
        job = self.trail.job(lease.job)
        live = self.trail.live(lease)
        if live is not None:
            assert error is None
            self.trail.finished(lease, live, outcome)
        elif job is not None and job.finished == lease.fence:
            stands = job.fence == lease.fence and job.status.terminal
            if stands and (job.status, job.outcome) != (outcome.status, outcome.blob):
                assert isinstance(error, LeaseLost), "one outcome a generation"
            else:
                assert error is None, "a finish that was applied is known when it is sent again"
        elif job is not None and job.finished is not None:
            assert error is not None  # 2

    @rule(worker=st.integers(0, 2), back=st.sampled_from([0, 0, 1, 2]))
    def release(self, worker: int, back: int) -> None:
        lease = self.lease(worker, back)
        if lease is not None:
            self.send_release(self.workers[worker], lease)

    def send_release(self, worker: Worker, lease: Lease) -> None:
        worker.again = lambda: self.send_release(worker, lease)
        assert self.refusal(lambda: self.store.release(lease)) is None
        job = self.trail.live(lease)
        if job is not None:
            self.trail.released(lease, job)

    @rule(worker=st.integers(0, 2), answer_lost=st.booleans())
    def retry(self, worker: int, answer_lost: bool) -> None:
        """Hand the job back, and claim it anew for the same submission."""
        lease = self.lease(worker, 0)
        if lease is None:
            return
        job = self.trail.live(lease)
        self.send_release(self.workers[worker], lease)
        submission = job.submission if job is not None else "s1"
        request = self.request(lease.job, lease.lock, worker, 0, submission)
        self.send_claim(self.workers[worker], request, answer_lost)

    # --- what goes wrong ----------------------------------------------------------------------

    @rule(worker=st.integers(0, 2))
    def crash(self, worker: int) -> None:
        """The worker forgets its leases, and what it was about to send again."""
        self.workers[worker].leases.clear()
        self.workers[worker].again = None

    @rule(worker=st.integers(0, 2))
    def send_again(self, worker: int) -> None:
        """The answer to its last request was lost: the worker sends the very same one."""
        again = self.workers[worker].again
        if again is not None:
            again()

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.move_clock(seconds * self.unit)

    # --- operators ----------------------------------------------------------------------------

    @rule(
        tenant=st.sampled_from(TENANTS),
        scope=st.sampled_from(SCOPES),
        aimed=st.sampled_from(["anyone", "the holder", "another"]),
    )
    def force_release(self, tenant: str, scope: tuple[str, ...], aimed: str) -> None:
        lock = LockRef(tenant, scope)
        hold = self.trail.holds.get(lock)
        nonce = {
            "anyone": None,
            "the holder": hold.nonce if hold is not None else "nobody",
            "another": "nobody",
        }[aimed]
        freed = hold is not None and nonce in (None, hold.nonce)
        answer = self.store.force_release(lock, owner_nonce=nonce)
        assert answer == (freed and hold is not None and hold.expires > self.clock.now)
        if freed:
            del self.trail.holds[lock]

    @rule(job=st.sampled_from(JOBS), in_advance=st.booleans())
    def cancel(self, job: JobRef, in_advance: bool) -> None:
        known = self.trail.job(job)
        answer = self.store.cancel(job, "no longer wanted", in_advance=in_advance)
        assert answer == (in_advance if known is None else not known.status.terminal)
        if not answer:
            return
        record = self.store.get_job(job)
        assert record is not None
        assert record.expires_at is not None
        assert record.expires_at > self.clock.now
        if known is None:
            known = self.trail.jobs[job] = Job(None, JobStatus.CANCELLED, 0, None, "", attempt=0)
        elif known.status is JobStatus.RUNNING and known.lock is not None:
            hold = self.trail.holds.get(known.lock)
            if hold is not None and hold.fence == known.fence:
                del self.trail.holds[known.lock]
        known.status, known.outcome = JobStatus.CANCELLED, b"no longer wanted"
        known.expires = record.expires_at

    @rule(
        job=st.sampled_from(JOBS),
        name=st.sampled_from(["value", "value", "value", "one", "cursor"]),
        blob=st.sampled_from([b"1", b"2"]),
        behind=st.sampled_from([0, 0, 0, 1, -1]),
        twice=st.booleans(),
    )
    def put_value(self, job: JobRef, name: str, blob: bytes, behind: int, twice: bool) -> None:
        """By one without a lease: who has read the value just now, or some versions ago."""
        known = self.trail.job(job)
        stored = known.checkpoints.get(name) if known is not None else None
        expected = (0 if stored is None else stored.version) - behind
        for _ in range(2 if twice else 1):
            error: Exception | None = None
            try:
                written = self.store.put_value(job, name, blob, expected_version=expected)
                assert (written.blob, written.version) == (blob, expected + 1)
            except (InvalidCall, StepNameReused, VersionConflict) as exc:
                error = exc
            refused = self.trail.put(job, name, blob, expected)
            assert error is None if refused is None else isinstance(error, refused)

    @rule(limit=st.sampled_from([1, 1000]))
    def cleanup(self, limit: int) -> None:
        assert 0 <= self.store.cleanup(limit) <= limit

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def the_store_shows_what_was_written(self) -> None:
        """2, 4, 5 and 10: every accepted write is there, of every tenant, and nothing else."""
        for tenant in TENANTS:
            records = {record.job: record for record in self.store.list_jobs(tenant).jobs}
            known = {ref for ref in JOBS if ref.tenant == tenant and self.trail.job(ref)}
            assert set(records) == known
            for ref, record in records.items():
                self.check_record(record, self.trail.jobs[ref])

    def check_record(self, record: JobRecord, known: Job) -> None:
        assert record.status is known.status
        assert record.fingerprint == (known.fingerprint or "")
        assert (record.generation, record.attempt, record.crashes, record.fence) == (
            known.generation,
            known.attempt,
            known.crashes,
            known.fence,
        )
        assert record.outcome == known.outcome
        assert self.same_time(record.expires_at, known.expires)
        stored = self.store.get_checkpoints(record.job)
        assert [(c.name, c.kind, c.blob, c.version) for c in stored] == [
            (c.name, c.kind, c.blob, c.version) for c in known.checkpoints.values()
        ]
        place = (record.job, record.created_at, record.generation)
        if record.status.terminal:
            outcome = (record.status, record.outcome)
            assert self.trail.outcomes.setdefault(place, outcome) == outcome  # 3
        for checkpoint in stored:
            seen = (*place, checkpoint.name)
            assert checkpoint.version >= self.trail.versions.get(seen, 0)  # 5
            self.trail.versions[seen] = checkpoint.version

    @invariant()
    def the_locks_are_those_granted(self) -> None:
        """1, 10. An expired lock may be gone, but no other may."""
        for tenant in TENANTS:
            stored = {
                LockRef(lock.tenant, lock.scope): lock for lock in self.store.list_locks(tenant)
            }
            for ref, lock in stored.items():
                hold = self.trail.holds[ref]
                assert (lock.fence, lock.job) == (hold.fence, hold.job)
                assert self.same_time(lock.expires_at, hold.expires)
            for ref, hold in self.trail.holds.items():
                if ref.tenant == tenant:
                    assert ref in stored or hold.expires <= self.clock.now

    @precondition(lambda self: any(worker.leases for worker in self.workers))
    @rule(worker=st.integers(0, 2))
    def take_over(self, worker: int) -> None:
        """9: past the TTL of a lease, any worker may have its job, if it hasn't ended."""
        others = [w for w in self.workers if w.leases]
        lease = others[-1].leases[-1]
        self.move_clock(LEASE_TTL * 2 * self.unit)
        job = self.trail.job(lease.job)
        if job is None or job.fingerprint is None or job.status.terminal:
            return
        payload = [fingerprint(p) for p in PAYLOADS].index(job.fingerprint)
        request = self.request(lease.job, lease.lock, worker, payload, "s1")
        assert self.trail.expected(request) is Claimed
        self.send_claim(self.workers[worker], request, answer_lost=False)

    def nothing_is_stuck_for_good(self) -> None:
        """9, for all at the end: what is unfinished can be claimed, one after the other."""
        self.move_clock(LEASE_TTL * 2 * self.unit)
        for ref in JOBS:
            job = self.trail.job(ref)
            if job is None or job.fingerprint is None or job.status.terminal:
                continue
            assert job.lock is not None
            payload = [fingerprint(p) for p in PAYLOADS].index(job.fingerprint)
            request = self.request(ref, job.lock, 0, payload, "last")
            answer = self.store.claim(request)
            assert isinstance(answer, Claimed), answer
            self.store.finish(answer.lease, success())


def test_any_sequence_of_operations_keeps_the_invariants() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=int(os.environ.get("STATEFUL_EXAMPLES", examples(250))),
            # Fewer than it takes to fail more submissions than a record remembers.
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
