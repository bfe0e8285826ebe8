"""ReliableTask without a worker: eager runs on a memory store, and plain calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, version_info
from celery.exceptions import Retry
from pydantic import BaseModel

from gwi_celery import Reliable, ReliableTask, store_for
from gwi_celery.blobs import dump
from gwi_celery.errors import (
    ConfigurationError,
    ConflictingIds,
    DeadlineExceeded,
    IdempotencyMismatch,
    InvalidCall,
    JobHeld,
    MissingTenant,
    NotSerializable,
    StepNameReused,
    TooLarge,
)
from gwi_celery.headers import DUE_HEADER
from gwi_celery.stores.base import CheckpointKind, JobRef, JobStatus, LockRef
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.workers import eventually


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app(max_checkpoint_bytes=1000, max_result_bytes=20_000)
    app.conf.task_always_eager = True
    yield app
    app.close()


class Repo(BaseModel):
    url: str
    depth: int = 1


CALL = {"tenant_id": "acme", "run_id": "r1"}


def test_steps_run_once_and_a_duplicate_gets_the_stored_result(app: Celery) -> None:
    seen: list[str] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> dict[str, Any]:
        seen.append("run")
        assert self.fence > 0
        assert (self.attempt, self.generation, self.lease_lost) == (1, 1, False)
        one = self.step("one", lambda: seen.append("one") or (1, 2))
        return {"one": one}

    assert t.delay(**CALL).get() == {"one": [1, 2]}
    assert t.delay(**CALL).get() == {"one": [1, 2]}
    assert t.apply(kwargs=CALL).get() == {"one": [1, 2]}
    assert seen == ["run", "one"]
    # Another tenant is another job.
    t.delay(tenant_id="other", run_id="r1").get()
    assert seen == ["run", "one", "run", "one"]


def test_the_log_says_where_a_job_goes_on(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    broken = [True]

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        self.step("list", lambda: ["a", "b"])
        self.step("fetch", lambda: None)
        self.checkpoint("note", "secret")
        with self.cursor("scan", start=0) as cursor:
            cursor.advance(20)
            if broken.pop():
                raise RuntimeError("half-way")

    caplog.set_level("INFO", "gwi_celery.reliability")
    broken.append(True)
    assert t.delay(**CALL).failed()
    assert "resumes" not in caplog.text
    broken[:] = [False]
    t.delay(**CALL).get()
    assert (
        "attempt 1 of generation 2 resumes: steps list, fetch; cursor scan at 20; values note"
        in caplog.text
    )
    assert "secret" not in caplog.text


def test_called_directly_it_is_a_plain_call(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        with self.cursor("c", start=3) as cursor:
            cursor.advance(cursor.value + 1)
        self.checkpoint("v", 1)
        self.check()
        return [self.step("s", lambda: (1,)), cursor.value, self.restore("v", 7), self.fence]

    assert t(**CALL) == [[1], 4, 7, 0]
    assert t(**CALL) == [[1], 4, 7, 0]
    assert store_for(app).list_jobs("acme").jobs == []


def test_a_reliable_task_called_directly_inside_another_is_a_plain_call(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="outer")
    def outer(self: Any, *, tenant_id: str, run_id: str, depth: int = 0) -> int:
        if depth == 0:
            return self(tenant_id=tenant_id, run_id=run_id, depth=1) + self.step("s", lambda: 10)
        return self.step("s", lambda: 1)

    assert outer.delay(**CALL).get() == 11
    names = [c.name for c in store_for(app).get_checkpoints(JobRef("acme", "outer", "run:r1"))]
    assert names == ["s"]


def test_another_payload_under_the_same_key_is_refused(app: Celery) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str, pr: dict[str, int]) -> int:
        ran.append(pr["id"])
        return pr["id"]

    assert t.delay(**CALL, pr={"id": 1}).get() == 1
    with pytest.raises(IdempotencyMismatch, match=r'another payload.*Reliable\(key="payload"\)'):
        t.delay(**CALL, pr={"id": 2}).get()
    assert t.delay(**CALL, pr={"id": 1}).get() == 1
    assert ran == [1]


def test_a_failure_is_not_cached_and_a_new_call_goes_on_at_the_failed_step(app: Celery) -> None:
    seen: list[str] = []
    broken = [True]

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        self.step("a", seen.append, "a")
        seen.append(f"gen{self.generation}")
        if broken[0]:
            raise KeyError("broken")
        return 1

    with pytest.raises(KeyError, match="broken"):
        t.delay(**CALL).get()
    job = JobRef("acme", "t", "run:r1")
    record = store_for(app).get_job(job)
    assert record is not None
    assert record.status is JobStatus.FAILED
    broken[0] = False
    assert t.delay(**CALL).get() == 1
    assert seen == ["a", "gen1", "gen2"]


def test_a_corrected_payload_after_a_failure_runs_without_the_old_steps(app: Celery) -> None:
    made: list[str] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, url: str, *, tenant_id: str, run_id: str) -> Any:
        self.step("fetch", made.append, url)
        if url == "bad":
            raise ValueError(url)
        return [url, self.generation]

    with pytest.raises(ValueError, match="bad"):
        t.delay("bad", **CALL).get()
    assert t.delay("good", **CALL).get() == ["good", 2]
    assert made == ["bad", "good"]
    with pytest.raises(IdempotencyMismatch):
        t.delay("bad", **CALL).get()


def test_the_same_submission_again_gets_its_failure_again(app: Celery) -> None:
    """A redelivery after the failure was recorded must not run again."""
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None:
        ran.append(1)
        raise ZeroDivisionError("once")

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="once"):
            t.apply(kwargs=CALL, task_id="same").get()
    assert ran == [1]


def test_retry_keeps_the_steps(app: Celery) -> None:
    seen: list[Any] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t", max_retries=3)
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        self.step("a", seen.append, "a")
        seen.append((self.request.retries, self.attempt))
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return 5

    assert t.apply(kwargs=CALL).get() == 5
    assert seen == ["a", (0, 1), (1, 2), (2, 3)]


def test_what_cannot_get_better_is_not_retried(app: Celery) -> None:
    ran: list[int] = []

    @app.task(
        shared=False,
        base=ReliableTask,
        bind=True,
        name="t",
        autoretry_for=(Exception,),
        max_retries=3,
    )
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        ran.append(1)
        self.step("big", lambda: "x" * 5000)

    with pytest.raises(TooLarge, match=r"'big' is 5,002 bytes.*limit is 1,000"):
        t.apply(kwargs=CALL).get()
    assert ran == [1]
    assert store_for(app).get_checkpoints(JobRef("acme", "t", "run:r1")) == []


def test_a_permanent_error_passed_to_retry_by_position_is_not_retried(app: Celery) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        ran.append(1)
        self.retry(None, None, TooLarge("on purpose"))

    with pytest.raises(TooLarge):
        t.apply(kwargs=CALL).get()
    assert ran == [1]


def test_called_eagerly_a_replaced_job_has_its_replacements_result(app: Celery) -> None:
    """As with Celery's own tasks; the replacement finds the lock of the run free."""
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="other")
    def other(*, tenant_id: str, run_id: str) -> int:
        ran.append(1)
        return 7

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        return self.replace(other.s(**CALL))

    assert t.delay(**CALL).get() == 7
    assert t.delay(**CALL).get() == 7, "a duplicate is replaced as well"
    assert ran == [1]


def test_a_replacement_that_can_not_be_recorded_fails_the_job(app: Celery) -> None:
    @app.task(shared=False, name="other")
    def other(text: str) -> None: ...

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        return self.replace(other.s("x" * 1_100_000))

    with pytest.raises(TooLarge, match="the signature that replaces the job"):
        t.delay(**CALL).get()
    record = store_for(app).get_job(JobRef("acme", "t", "run:r1"))
    assert record is not None
    assert record.status is JobStatus.FAILED


def test_a_result_over_the_limit_is_an_error_and_not_cut(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> str:
        return "x" * 50_000

    with pytest.raises(TooLarge, match="the result of t"):
        t.delay(**CALL).get()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (lambda s: [s.step("a", int), s.step("a", int)], StepNameReused),
        (lambda s: [s.step("a", int), s.checkpoint("a", 1)], StepNameReused),
        (lambda s: [s.checkpoint("a", 1), s.step("a", int)], StepNameReused),
        (lambda s: s.step("a", object), NotSerializable),
        (lambda s: s.step(1, pytest.fail), StepNameReused),
        (lambda s: s.checkpoint("", 1), StepNameReused),
        (lambda s: s.progress(10**309), InvalidCall),
    ],
)
def test_a_name_used_twice_or_a_value_without_a_json_form_is_an_error(
    app: Celery, body: Any, error: type[Exception]
) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        body(self)

    with pytest.raises(error):
        t.delay(**CALL).get()


def test_a_step_or_job_that_is_async_says_how_to_run_it(app: Celery) -> None:
    async def fetch() -> int:
        return 1

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, stepwise: bool, *, tenant_id: str, run_id: str) -> Any:
        return self.step("fetch", fetch) if stepwise else fetch()

    for stepwise in (True, False):
        with pytest.raises(NotSerializable, match=r"asyncio\.run"):
            t.delay(stepwise, tenant_id="acme", run_id=str(stepwise)).get()


def test_a_step_that_raised_may_be_called_again(app: Celery) -> None:
    tries: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        def flaky() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise OSError("not yet")
            return 7

        for _ in range(3):
            try:
                return int(self.step("flaky", flaky))
            except OSError:
                with pytest.raises(NotSerializable):
                    self.step("flaky", object)
        raise AssertionError

    assert t.delay(**CALL).get() == 7
    assert len(tries) == 3


def test_checkpoints_may_be_overwritten_and_are_restored(app: Celery) -> None:
    seen: list[Any] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        seen.append(self.restore("v"))
        self.checkpoint("v", {"n": 1})
        self.checkpoint("v", {"n": 2})
        assert self.restore("v") == {"n": 2}
        if len(seen) == 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        t.delay(**CALL).get()
    t.delay(**CALL).get()
    assert seen == [None, {"n": 2}]


def test_a_value_written_by_another_meanwhile_is_no_failure_of_the_job(app: Celery) -> None:
    """The job's own goes on top, whether or not it had one there before."""
    store, job = store_for(app), JobRef("acme", "t", "run:r1")

    def from_outside(name: str, expected: int) -> None:
        store.put_value(job, name, dump("theirs", what=name, limit=100), expected_version=expected)

    @app.task(shared=False, base=ReliableTask, bind=True, name="t", max_retries=1)
    def t(self: Any, *, tenant_id: str, run_id: str) -> list[Any]:
        if self.attempt == 1:
            from_outside("new", 0)
            self.checkpoint("new", "mine")
            self.checkpoint("old", "mine")
            from_outside("old", 1)
            from_outside("old", 2)
            self.checkpoint("old", "mine, too")
            from_outside("read", 0)
            assert self.restore("read") is None
            raise self.retry(countdown=0)
        return [self.restore(name) for name in ("new", "old", "read")]

    assert t.apply(kwargs=CALL).get() == ["mine", "mine, too", "theirs"]
    versions = {c.name: c.version for c in store.get_checkpoints(job)}
    assert versions == {"new": 2, "old": 4, "read": 1}


def test_derived_keys_are_the_same_at_every_attempt(app: Celery) -> None:
    keys: list[str] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        keys.append(self.derive_key("charge", 1))
        assert self.derive_key("charge", 2) != keys[0]
        if len(keys) == 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        t.delay(**CALL).get()
    t.delay(**CALL).get()
    assert keys[0] == keys[1]


def test_replay_opens_a_new_generation_from_a_step(app: Celery) -> None:
    seen: list[str] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        for name in ("a", "b", "c"):
            self.step(name, seen.append, name)
        return int(self.generation)

    assert t.delay(**CALL).get() == 1
    assert t.replay(kwargs=CALL, from_step="b").get() == 2
    assert seen == ["a", "b", "c", "b", "c"]
    assert t.replay(kwargs=CALL).get() == 3
    assert seen[5:] == ["a", "b", "c"]
    assert t.delay(**CALL).get() == 3
    with pytest.raises(ValueError, match=r"no-such.*'a', 'b', 'c'"):
        t.replay(kwargs=CALL, from_step="no-such")


def test_a_job_without_a_run_is_replayed_by_its_task_id(app: Celery) -> None:
    made: list[str] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str) -> int:
        self.step("a", made.append, "a")
        self.step("b", made.append, "b")
        return int(self.generation)

    call = {"tenant_id": "acme"}
    first = t.delay(**call)
    assert first.get() == 1
    with pytest.raises(InvalidCall, match=r"task_id=\.\.\."):
        t.replay(kwargs=call)
    again = t.replay(kwargs=call, task_id=first.id, from_step="b")
    assert again.get() == 2
    assert again.id != first.id
    assert t.replay(kwargs=call, task_id=first.id).get() == 3
    assert made == ["a", "b", "b", "a", "b"]


def test_a_job_with_a_key_is_replayed_by_it(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str) -> int:
        return int(self.generation)

    call = {"tenant_id": "acme"}
    assert t.apply_async(kwargs=call, idempotency_key="k").get() == 1
    assert t.replay(kwargs=call, idempotency_key="k", task_id="mine").id == "mine"
    record = store_for(app).get_job(JobRef("acme", "t", "key:k"))
    assert record is not None
    assert (record.generation, record.submission) == (2, "mine")


def test_a_job_of_beats_is_replayed_by_the_time_it_was_due(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> list[Any]:
        return [self.generation, self.request.headers[DUE_HEADER]]

    first, second = ({DUE_HEADER: f"2026-11-2{day}T03:00:00+00:00"} for day in (6, 7))
    for due in (first, second):
        assert t.apply_async(kwargs=CALL, headers=due).get() == [1, due[DUE_HEADER]]
    assert t.replay(kwargs=CALL, headers=first).get() == [2, first[DUE_HEADER]]
    assert t.apply_async(kwargs=CALL, headers=second).get() == [1, second[DUE_HEADER]]


def test_past_its_deadline_a_job_ends_at_its_next_boundary_or_does_not_begin(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        time.sleep(0.06)
        try:
            self.check()
        except Exception:
            pytest.fail("a job must not be able to swallow its deadline")

    with pytest.raises(DeadlineExceeded, match="deadline"):
        t.apply_async(kwargs=CALL, deadline=0.05).get()
    with pytest.raises(DeadlineExceeded):
        t.apply_async(kwargs={**CALL, "run_id": "r2"}, deadline=0.0000001).get()


def test_a_lock_of_another_job_of_the_run_is_waited_for(app: Celery) -> None:
    entered, leave = threading.Event(), threading.Event()

    @app.task(shared=False, base=ReliableTask, name="one")
    def one(*, tenant_id: str, run_id: str) -> None:
        entered.set()
        assert leave.wait(PATIENCE)

    @app.task(shared=False, base=ReliableTask, name="two")
    def two(*, tenant_id: str, run_id: str) -> int:
        return 2

    @app.task(shared=False, base=ReliableTask, name="free", reliable=Reliable(lock=None))
    def free(*, tenant_id: str, run_id: str) -> int:
        return 3

    thread = threading.Thread(target=lambda: one.apply(kwargs=CALL))
    thread.start()
    assert entered.wait(PATIENCE)
    with pytest.raises(JobHeld, match=r"lock run/r1 of tenant 'acme' is held by one \(job run:r1"):
        two.apply(kwargs=CALL).get()
    assert free.apply(kwargs=CALL).get() == 3
    assert two.apply(kwargs={**CALL, "run_id": "other"}).get() == 2
    assert two.apply(kwargs={**CALL, "tenant_id": "other"}).get() == 2
    leave.set()
    thread.join()
    assert two.apply(kwargs=CALL).get() == 2


def test_the_lease_is_renewed_in_the_background_and_its_loss_stops_the_job(app: Celery) -> None:
    lock = LockRef("acme", ("run", "r1"))

    def expires() -> float:
        held = store_for(app).get_lock(lock)
        assert held is not None
        return held.expires_at

    @app.task(shared=False, base=ReliableTask, bind=True, name="t", reliable=Reliable(lock_ttl=2))
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        first = expires()
        eventually(lambda: expires() > first, what="a renewal")
        self.check()
        store_for(app).force_release(lock)
        eventually(lambda: self.lease_lost, what="the renewal finds out")
        try:
            self.step("late", int)
        except Exception:
            pytest.fail("a job must not be able to swallow the loss of its lease")

    result = t.apply(kwargs=CALL)
    assert result.state == "REJECTED"
    assert store_for(app).get_checkpoints(JobRef("acme", "t", "run:r1")) == []


def test_a_cancelled_job_stops_and_does_not_start_again(app: Celery) -> None:
    job = JobRef("acme", "t", "run:r1")
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        ran.append(1)
        assert store_for(app).cancel(job, "no longer wanted")
        self.step("never", ran.append, 2)

    assert t.apply(kwargs=CALL).state == "IGNORED"
    assert t.apply(kwargs=CALL).state == "IGNORED"
    # The function of a step runs before its result is refused; the next boundary is never reached.
    assert ran in ([1], [1, 2])
    assert store_for(app).get_checkpoints(job) == []


def test_pydantic_arguments_and_results(app: Celery) -> None:
    if version_info < (5, 7):

        @app.task(shared=False, base=ReliableTask, name="old")
        def old(tenant_id: str, repo: Any) -> None: ...

        with pytest.raises(NotSerializable, match="a Repo"):  # Celery dumps no arguments yet
            old.delay("acme", Repo(url="u"))
        return

    @app.task(shared=False, base=ReliableTask, name="t", pydantic=True)
    def t(*, tenant_id: str, run_id: str, repo: Repo) -> Repo:
        assert isinstance(repo, Repo)
        return Repo(url=repo.url, depth=repo.depth + 1)

    first = t.delay(**CALL, repo=Repo(url="x")).get()
    assert first == {"url": "x", "depth": 2}
    assert t.delay(**CALL, repo={"url": "x", "depth": 1}).get() == first


def test_a_job_without_a_run_is_its_own(app: Celery) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str) -> None:
        ran.append(1)

    t.delay(tenant_id="acme").get()
    t.delay(tenant_id="acme").get()
    assert ran == [1, 1]


IDS = ["a/b", "..", ".", "__x__", "🦊" * 10, "x" * 2000, "a\nb", "ä", "a\u0308", "\ud800"]


def test_ids_may_hold_anything_and_never_meet(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> list[str]:
        return [tenant_id, run_id]

    for tenant in IDS:
        for run in IDS:
            assert t.delay(tenant_id=tenant, run_id=run).get() == [tenant, run]
    assert {len(store_for(app).list_jobs(tenant).jobs) for tenant in IDS} == {len(IDS)}


# --- refused at .delay() ----------------------------------------------------------------------


def test_calls_that_can_not_be_right_are_refused_at_once(app: Celery) -> None:
    app.conf.task_always_eager = False

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str | None = None, run_id: str | None = None, x: Any = None) -> None: ...

    with pytest.raises(MissingTenant, match=r"pass tenant_id=\.\.\."):
        t.delay()
    with pytest.raises(MissingTenant, match="empty"):
        t.delay(tenant_id="")
    with pytest.raises(ConflictingIds, match="pass it in one place"):
        t.apply_async(kwargs=CALL, headers={"run_id": "other"})
    with pytest.raises(NotSerializable, match=r"argument 'x' \(a set\)"):
        t.delay(**CALL, x={1, 2})
    with pytest.raises(InvalidCall, match="labels="):
        t.apply_async(kwargs=CALL, labels=["a"])
    with pytest.raises(InvalidCall, match="the deadline is a huge number"):
        t.apply_async(kwargs=CALL, deadline=10**309)
    with pytest.raises(TypeError):
        t.delay(**CALL, unknown=1)


@pytest.mark.parametrize(
    "options",
    [
        {"acks_late": False},
        {"reject_on_worker_lost": False},
        {"acks_on_failure": True},
        {"serializer": "pickle"},
    ],
)
def test_a_task_that_switches_the_promise_off_is_refused_at_start(
    app: Celery, options: dict[str, Any]
) -> None:
    @app.task(shared=False, base=ReliableTask, name="t", **options)
    def t(*, tenant_id: str) -> None: ...

    with pytest.raises(ConfigurationError, match="breaks the promise"):
        app.finalize()


def test_the_store_keeps_kinds_apart(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        self.step("s", int)
        self.checkpoint("v", 1)
        with self.cursor("c") as cursor:
            cursor.advance(1)

    t.delay(**CALL).get()
    found = store_for(app).get_checkpoints(JobRef("acme", "t", "run:r1"))
    assert [(c.name, c.kind) for c in found] == [
        ("s", CheckpointKind.STEP),
        ("v", CheckpointKind.VALUE),
        ("c", CheckpointKind.CURSOR),
    ]


def test_retry_outside_a_worker_raises_as_celery_does(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str) -> None:
        raise self.retry()

    with pytest.raises(Retry):
        t(tenant_id="x")


def test_a_plain_call_finds_a_name_used_twice(app: Celery) -> None:
    tries: list[str] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str, inner: bool = False, name: str = "b") -> Any:
        def flaky() -> int:
            tries.append("x")
            return {1: 1}[len(tries) - 1]

        if not inner:
            with pytest.raises(KeyError):
                self.step("a", flaky)
        kept = self.step("a", flaky if not inner else int)
        with self.cursor(name) as cursor:
            cursor.advance(3)
            self.checkpoint("progress", 1)
            self.checkpoint("progress", 2)
        return [kept, self.fence, self.attempt, *([] if inner else self(**CALL, inner=True))]

    assert t(**CALL) == [1, 0, 1, 0, 0, 1]
    with pytest.raises(StepNameReused, match="'a' is used twice"):
        t(**CALL, inner=True, name="a")
