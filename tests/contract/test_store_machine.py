"""The protocol under a state machine: several workers, a held clock, a crash between any two calls.

A model keeps the audit trail that the store does not: who was granted what, and which of the holders
is the current one. After each rule the invariants of docs/design.md are compared with the store.
``STORE_MACHINE_EXAMPLES`` sets the number of examples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gwi_celery.errors import JobCancelled, LeaseLost
from gwi_celery.stores.base import (
    Cancelled,
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    JobStatus,
    Lease,
    LockRef,
    Mismatch,
    Outcome,
    Replay,
)
from gwi_celery.stores.protocol import CANCELLED_TTL
from gwi_celery.stores.sqlite import SqliteStore
from tests.clocks import FakeClock
from tests.machine import examples

TTL = 30.0
RESULT_TTL = 1000.0
#: (tenant, key); the jobs of one tenant share a lock, so that jobs contend as well as attempts.
JOBS = [("acme", "a"), ("acme", "b"), ("other", "a")]


@dataclass
class Attempt:
    """A worker's belief that it holds a job. The worker may have crashed, or be asleep."""

    lease: Lease
    name: tuple[str, str]
    cursor: int = 0


@dataclass
class Model:
    """What the trail says of one job."""

    generation: int = 0
    steps: dict[str, bytes] = field(default_factory=dict)
    cursor: int = 0
    #: (generation) -> outcome; one for ever.
    outcomes: dict[int, tuple[JobStatus, bytes]] = field(default_factory=dict)
    terminal: JobStatus | None = None
    fingerprint: str | None = None
    ended_at: float = 0.0
    #: Fence of the attempt that may write.
    holder: int | None = None


class Protocol(RuleBasedStateMachine):
    #: All times are multiples of it, seconds. A server whose own clock goes on while a test runs
    #: needs one that is long beside that.
    unit = 1.0
    clock: FakeClock
    store: Any

    def open(self) -> None:
        self.clock = FakeClock()
        self.store = SqliteStore(None, clock=self.clock)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @initialize()
    def begin(self) -> None:
        self.ttl, self.result_ttl = TTL * self.unit, RESULT_TTL * self.unit
        self.open()
        self.models = {name: Model() for name in JOBS}
        self.attempts: list[Attempt] = []
        self.tokens: dict[str, list[int]] = {}
        self.expires: dict[str, float] = {}
        self.locked_by: dict[str, int | None] = {}
        #: Fences whose finish was accepted: saying it again is no error, and changes nothing.
        self.finished: set[int] = set()
        self.serial = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    # --- claims -------------------------------------------------------------------------------

    def _request(self, name: tuple[str, str], payload: str, **options: Any) -> ClaimRequest:
        self.serial += 1
        tenant, key = name
        return ClaimRequest(
            job=JobRef(tenant, "task", key),
            lock=LockRef(tenant, ("run", "r")),
            run_id="r",
            fingerprint=payload,
            submission=options.pop("submission", f"s{self.serial}"),
            owner="w",
            nonce=f"n{self.serial}",
            lease_ttl=self.ttl,
            result_ttl=self.result_ttl,
            **options,
        )

    def _gone(self, model: Model) -> bool:
        return model.terminal is not None and self.clock.time() >= model.ended_at + self.result_ttl

    def _held(self, tenant: str) -> bool:
        holder = self.locked_by.get(tenant)
        return holder is not None and self.clock.time() < self.expires[tenant]

    @rule(
        name=st.sampled_from(JOBS),
        payload=st.sampled_from(["p", "p", "p", "q"]),
        twice=st.booleans(),
        replays=st.booleans(),
    )
    def claim(self, name: tuple[str, str], payload: str, twice: bool, replays: bool) -> None:
        model = self.models[name]
        if self._gone(model):
            model = self.models[name] = Model()
        replay = Replay(model.generation + 1) if replays and model.terminal else None
        request = self._request(name, payload, replay=replay)
        answer = self.store.claim(request)
        if twice:  # its answer was lost: sent again, it is the same claim
            again = self.store.claim(request)
            assert type(again) is type(answer)
            if isinstance(answer, Claimed):
                assert isinstance(again, Claimed)
                assert again.lease.fence == answer.lease.fence, "never granted twice"
        self._compare(name, model, request, answer)

    def _compare(
        self, name: tuple[str, str], model: Model, request: ClaimRequest, answer: Any
    ) -> None:
        tenant = name[0]
        known = model.fingerprint is not None
        another = known and model.fingerprint not in ("", request.fingerprint)
        if another and model.terminal is not JobStatus.FAILED:
            assert isinstance(answer, Mismatch)
            return
        if model.terminal is JobStatus.CANCELLED and request.replay is None:
            assert isinstance(answer, Cancelled)
            return
        if model.terminal is JobStatus.SUCCEEDED and request.replay is None:
            assert isinstance(answer, Completed)
            assert answer.record.outcome == model.outcomes[model.generation][1]
            return
        if self._held(tenant):
            assert isinstance(answer, Held)
            assert answer.retry_after >= 0
            return
        assert isinstance(answer, Claimed), "what is free or expired can always be taken"
        lease = answer.lease
        before = self.tokens.setdefault(tenant, [])
        assert not before or lease.fence > before[-1], "tokens strictly grow"
        before.append(lease.fence)
        if model.terminal is not None or model.generation == 0:
            if request.replay is not None or another:
                model.steps, model.cursor = {}, 0
            model.generation += 1
            model.terminal = None
        assert lease.generation == model.generation
        model.fingerprint = request.fingerprint
        model.holder = lease.fence
        self.locked_by[tenant] = lease.fence
        self.expires[tenant] = self.clock.time() + self.ttl
        recorded = {c.name: c for c in self.store.load(lease)}
        assert {n: c.blob for n, c in recorded.items() if n != "cursor"} == model.steps
        assert answer.has_checkpoints == bool(recorded)
        self.attempts.append(Attempt(lease, name, model.cursor))

    # --- what holders do, be they current or long replaced ------------------------------------

    def _current(self, attempt: Attempt) -> bool:
        model = self.models[attempt.name]
        return (
            model.holder == attempt.lease.fence
            and self.locked_by.get(attempt.name[0]) == attempt.lease.fence
            and model.terminal is None
        )

    def _write(self, attempt: Attempt, operation: Any) -> bool:
        """Do it; whether it was accepted. Only the current holder's may be."""
        current = self._current(attempt)
        try:
            answer = operation()
        except (LeaseLost, JobCancelled):
            assert not current, "the holder's write was refused"
            return False
        assert current, "a stale holder's write was accepted"
        if isinstance(answer, Lease):
            attempt.lease = answer
            self.expires[attempt.name[0]] = self.clock.time() + self.ttl
        return True

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), step=st.sampled_from(["s1", "s2", "s3"]), twice=st.booleans())
    def save_step(self, data: Any, step: str, twice: bool) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        model = self.models[attempt.name]
        # An attempt never calls a step that is recorded: it repeats what it read.
        blob = model.steps.get(step, f"{step}-{attempt.lease.fence}".encode())
        checkpoint = Checkpoint(step, CheckpointKind.STEP, blob)
        for _ in range(2 if twice else 1):
            if self._write(attempt, lambda: self.store.save(attempt.lease, checkpoint)):
                model.steps[step] = blob

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def advance(self, data: Any) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        version = attempt.cursor + 1
        checkpoint = Checkpoint("cursor", CheckpointKind.CURSOR, b"%d" % version, version)
        if self._write(attempt, lambda: self.store.save(attempt.lease, checkpoint)):
            attempt.cursor = version
            self.models[attempt.name].cursor = version

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def renew(self, data: Any) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        self._write(attempt, lambda: self.store.renew(attempt.lease))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), succeeds=st.booleans(), twice=st.booleans())
    def finish(self, data: Any, succeeds: bool, twice: bool) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        model = self.models[attempt.name]
        status = JobStatus.SUCCEEDED if succeeds else JobStatus.FAILED
        outcome = Outcome(status, f"{status.value}-{attempt.lease.fence}".encode())
        current = self._current(attempt)
        try:
            self.store.finish(attempt.lease, outcome)
        except (LeaseLost, JobCancelled):
            assert not current
            return
        if not current:
            # Finished by this very lease before: no error, and nothing changes.
            assert attempt.lease.fence in self.finished
            return
        if twice:
            self.store.finish(attempt.lease, outcome)
        self.finished.add(attempt.lease.fence)
        assert model.generation not in model.outcomes, "one recorded outcome per generation"
        model.outcomes[model.generation] = (status, outcome.blob)
        model.terminal, model.ended_at = status, self.clock.time()
        self.locked_by[attempt.name[0]] = None

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        current = self._current(attempt)
        self.store.release(attempt.lease)
        if current:
            self.locked_by[attempt.name[0]] = None
            self.models[attempt.name].holder = None

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        """The worker is gone: nobody will ever use its lease again."""
        self.attempts.remove(data.draw(st.sampled_from(self.attempts)))

    # --- operators and time -------------------------------------------------------------------

    @rule(tenant=st.sampled_from(["acme", "other"]))
    def force_release(self, tenant: str) -> None:
        freed = self.store.force_release(LockRef(tenant, ("run", "r")))
        assert freed == self._held(tenant)
        self.locked_by[tenant] = None

    @rule(name=st.sampled_from(JOBS))
    def cancel(self, name: tuple[str, str]) -> None:
        model = self.models[name]
        if self._gone(model):
            model = self.models[name] = Model()
        accepted = self.store.cancel(
            JobRef(name[0], "task", name[1]), "not wanted", in_advance=True
        )
        assert accepted == (model.terminal is None)
        if not accepted:
            return
        if model.generation == 0:
            # Nobody has named a TTL yet: it is kept for a day.
            model.generation, model.fingerprint = 1, ""
            model.ended_at = self.clock.time() + CANCELLED_TTL - self.result_ttl
            model.terminal = JobStatus.CANCELLED
            return
        if model.holder is not None and self.locked_by.get(name[0]) == model.holder:
            self.locked_by[name[0]] = None
        model.terminal = JobStatus.CANCELLED
        model.ended_at = self.clock.time()

    @rule(seconds=st.sampled_from([1.0, TTL - 1, TTL, TTL + 1, RESULT_TTL + 1]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds * self.unit)

    @rule()
    def cleanup(self) -> None:
        self.store.cleanup()

    # --- what is always true ------------------------------------------------------------------

    @invariant()
    def the_store_agrees(self) -> None:
        for name, model in getattr(self, "models", {}).items():
            if self._gone(model):
                continue
            job = JobRef(name[0], "task", name[1])
            record = self.store.get_job(job)
            if model.generation == 0:
                assert record is None
                continue
            assert record is not None
            assert record.generation == model.generation
            if model.terminal is not None:
                assert record.status is model.terminal
                if model.terminal is not JobStatus.CANCELLED:
                    assert record.outcome == model.outcomes[model.generation][1]
            else:
                assert not record.status.terminal
            saved = {c.name: c for c in self.store.get_checkpoints(job)}
            assert {n: c.blob for n, c in saved.items() if n != "cursor"} == model.steps
            assert (saved["cursor"].version if "cursor" in saved else 0) == model.cursor


Protocol.TestCase.settings = settings(
    max_examples=int(os.environ.get("STORE_MACHINE_EXAMPLES", examples(60))),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestProtocol = Protocol.TestCase
