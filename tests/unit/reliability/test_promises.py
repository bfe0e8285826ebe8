"""What a task is promised beside its steps: which calls are one job, custom calls, replays, deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from celery import Celery, group

from gwi_celery import Reliable, ReliableTask, store_for
from gwi_celery.errors import (
    ConfigurationError,
    DeadlineExceeded,
    IdempotencyMismatch,
    InvalidCall,
    NotSerializable,
)
from gwi_celery.headers import DUE_HEADER
from gwi_celery.reliability.call import own_lock
from gwi_celery.stores.base import Claimed, ClaimRequest, JobRef, JobStatus, LockRef
from tests import zygote

CALL = {"tenant_id": "acme", "run_id": "r1"}
JOB = JobRef("acme", "t", "run:r1")


@pytest.fixture
def app(app: Celery) -> Celery:
    app.conf.task_always_eager = True
    return app


# --- which calls are the same job -----------------------------------------------------------------


@pytest.mark.parametrize("options", [{"key": "payload"}, {"idempotency": "payload"}])
def test_a_fan_out_within_a_run_is_one_option(app: Celery, options: dict[str, Any]) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t", reliable=Reliable(**options))
    def t(n: int, *, tenant_id: str, run_id: str) -> int:
        ran.append(n)
        return n

    for _ in range(2):
        assert group(t.s(n, **CALL) for n in range(4))().get() == [0, 1, 2, 3]
    assert t.delay(n=2.0, **CALL).get() == 2
    assert t.delay(2, **{**CALL, "run_id": "r2"}).get() == 2
    assert ran == [0, 1, 2, 3, 2]


def test_without_it_the_mismatch_names_it(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(n: int, *, tenant_id: str, run_id: str) -> int:
        return n

    assert t.delay(0, **CALL).get() == 0
    with pytest.raises(IdempotencyMismatch, match=r'Reliable\(key="payload"\)'):
        t.delay(1, **CALL).get()


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


def test_a_sending_of_beat_is_a_job_of_its_own_under_the_same_lock(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    app.finalize()
    due = {DUE_HEADER: "2026-11-26T00:00:00+00:00"}
    plain = t.resolve_call((), CALL, {}, "1")
    for headers in ({}, {"gwi_key": "k"}):
        once = t.resolve_call((), CALL, {**headers, **due}, "1")
        other = t.resolve_call((), CALL, {**headers, DUE_HEADER: "2026-11-27T00:00:00+00:00"}, "1")
        assert len({once.job, other.job, plain.job}) == 3
        assert once.lock == other.lock == plain.lock
    assert once == t.resolve_call((), CALL, {"gwi_key": "k", **due}, "2")


@pytest.mark.parametrize(
    "given", [{"key": "runs"}, {"key": None}, {"key": len, "idempotency": len}]
)
def test_a_key_that_means_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        Reliable(**given)


# --- options in the wrong place -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lock": None, "deadline": 5}, r"reliable=Reliable\(lock=None, deadline=5\)"),
        ({"key": "payload"}, r"reliable=Reliable\(key='payload'\)"),
        ({"idempotency": len}, "idempotency"),
        ({"max_crashes": 3, "result_ttl": 1.5}, r"result_ttl=1\.5, max_crashes=3"),
    ],
)
def test_an_option_given_to_the_decorator_is_refused(
    app: Celery, given: dict[str, Any], named: str
) -> None:
    @app.task(shared=False, base=ReliableTask, name="t", **given)
    def t(*, tenant_id: str) -> None: ...

    with pytest.raises(ConfigurationError, match=named):
        app.finalize()


def test_an_option_set_in_a_class_is_refused_but_not_what_only_has_its_name(app: Celery) -> None:
    class Own(ReliableTask):
        abstract = True

        @property
        def key(self) -> str:
            return "mine"

        def lock(self) -> str:
            return "mine"

    @app.task(shared=False, base=Own, bind=True, name="good")
    def good(self: Any, *, tenant_id: str) -> list[str]:
        return [self.key, self.lock()]

    assert good.apply(kwargs={"tenant_id": "acme"}).get() == ["mine", "mine"]

    class Bad(ReliableTask):
        name = "bad"
        max_crashes = 3

        def run(self, *, tenant_id: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Reliable\(max_crashes=3\)"):
        app.register_task(Bad())


def test_an_option_of_another_type_is_refused_where_it_stands(app: Celery) -> None:
    for option in (
        *(
            {name: value}
            for name in ("lock_ttl", "result_ttl", "deadline")
            for value in ("5", -1, True, 1e12, float("inf"), 10**309)
        ),
        *(
            {name: value}
            for name in ("max_crashes", "max_result_bytes")
            for value in ("5", -1, 1.5)
        ),
    ):
        with pytest.raises(ConfigurationError, match=rf"Reliable\({next(iter(option))}="):
            Reliable(**option)
    for name, retries in (("text", "3"), ("negative", -1)):

        class Odd(ReliableTask):
            max_retries = retries

            def run(self, *, tenant_id: str) -> None: ...

        Odd.name = name
        with pytest.raises(ConfigurationError, match=r"max_retries=.*whole number"):
            app.register_task(Odd())


# --- a __call__ of one's own ----------------------------------------------------------------------


class ByRun(ReliableTask):
    abstract = True
    seen: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("around")
        return self.run(*args, **kwargs)


class BySuper(ReliableTask):
    abstract = True
    seen: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("around")
        return super().__call__(*args, **kwargs)


class Twice(BySuper):
    abstract = True
    seen: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("outer")
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("base", [ByRun, BySuper, Twice])
def test_a_custom_call_runs_inside_the_attempt(app: Celery, base: Any) -> None:
    base.seen.clear()

    @app.task(shared=False, base=base, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str, depth: int = 0) -> Any:
        made = self.step("s", lambda: self.seen.append("step") or 5)
        if depth:
            return [made, self.fence]
        return [made, self.fence > 0, *self(tenant_id=tenant_id, run_id=run_id, depth=1)]

    around = ["outer", "around"] if base is Twice else ["around"]
    assert t.apply(kwargs=CALL).get() == [5, True, 5, 0]
    assert base.seen == [*around, "step", *around, "step"]
    assert t.apply(kwargs=CALL).get() == [5, True, 5, 0], "a duplicate is answered"
    assert len(base.seen) == 2 * len(around) + 2
    assert [c.name for c in store_for(app).get_checkpoints(JOB)] == ["s"]
    base.seen.clear()
    assert t(**CALL, depth=1) == [5, 0], "a plain call stays one"
    assert base.seen == [*around, "step"]


# --- steps and cursors ----------------------------------------------------------------------------


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


def test_a_cursor_of_tuples_goes_on_where_it_was(app: Celery) -> None:
    seen: list[Any] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        with self.cursor("c", start=(0, (0,)), save_every=0) as cursor:
            seen.append(cursor.value)
            major, _ = cursor.value
            cursor.advance((major + 1, (5,)))
            if self.generation < 3:
                raise KeyError("half-way")

    for _ in range(2):
        with pytest.raises(KeyError):
            t.delay(**CALL).get()
    t.delay(**CALL).get()
    assert [tuple(value) == value for value in seen] == [True] * 3
    assert [value[0] for value in seen] == [0, 1, 2]


def test_a_cursors_loop_may_be_entered_again_after_an_error(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> list[int]:
        places = []
        for n in range(3):
            try:
                with self.cursor("c", start=0, save_every=3600) as cursor:
                    places.append(cursor.value)
                    cursor.advance(cursor.value + 10)
                    if n < 2:
                        raise OSError("again")
            except OSError:
                continue
        return places

    assert t.delay(**CALL).get() == [0, 10, 20]


# --- replays --------------------------------------------------------------------------------------


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


# --- deadlines while waiting ----------------------------------------------------------------------


def hold(app: Celery, job: JobRef, lock: LockRef) -> None:
    """As another worker would."""
    request = ClaimRequest(job, lock, "r1", "f", "other", "elsewhere:1", uuid4().hex, 60, 60)
    assert isinstance(store_for(app).claim(request), Claimed)


def test_a_job_whose_deadline_passes_while_it_waits_for_its_lock_fails(app: Celery) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None:
        ran.append(1)

    lock = LockRef("acme", ("run", "r1"))
    hold(app, JobRef("acme", "other", "run:r1"), lock)
    with pytest.raises(DeadlineExceeded):
        t.apply_async(kwargs=CALL, deadline=-1).get()
    record = store_for(app).get_job(JOB)
    assert record is not None
    assert record.status is JobStatus.FAILED
    held = store_for(app).get_lock(lock)
    assert held is not None
    assert held.job.task == "other"
    assert store_for(app).get_lock(own_lock(JOB)) is None
    assert ran == []


def test_a_duplicate_whose_deadline_passes_leaves_the_job_that_runs_alone(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    app.finalize()
    fingerprint = t.resolve_call((), CALL, {}, "x").fingerprint()
    lock = LockRef("acme", ("run", "r1"))
    request = ClaimRequest(JOB, lock, "r1", fingerprint, "first", "elsewhere:1", "n", 60, 60)
    claimed = store_for(app).claim(request)
    assert isinstance(claimed, Claimed)
    with pytest.raises(DeadlineExceeded, match="held by"):
        t.apply_async(kwargs=CALL, deadline=-1).get()
    store_for(app).renew(claimed.lease)
    record = store_for(app).get_job(JOB)
    assert record is not None
    assert record.status is JobStatus.RUNNING


# --- Django ---------------------------------------------------------------------------------------

DJANGO = """
import os, sys, types
from unittest.mock import Mock
transaction = types.ModuleType("django.db.transaction")
calls = []
transaction.on_commit = calls.append
db = types.ModuleType("django.db"); db.transaction = transaction
django = types.ModuleType("django"); django.db = db
sys.modules.update({"django": django, "django.db": db, "django.db.transaction": transaction})
from celery import Celery
from gwi_celery import ReliableTask, setup
app = Celery("shop", set_as_current=False)
app.task_cls = "celery.contrib.django.task:DjangoTask"  # as Celery's Django fixup does
setup(app, broker_url="embedded://:memory:/x", store_url="embedded://:memory:/x")
app.conf.task_always_eager = True
ran = []

@app.task(base=ReliableTask, name="t")
def t(*, tenant_id):
    ran.append(tenant_id)

t.delay_on_commit(tenant_id="a")
t.apply_async_on_commit(kwargs={"tenant_id": "b"}, idempotency_key="k")
assert ran == []
for call in calls:
    call()
assert ran == ["a", "b"], ran
"""


def test_under_a_django_app_a_task_has_celerys_verbs_for_transactions(tmp_path: Path) -> None:
    """In a process of its own, with as much of Django as Celery's task needs."""
    done = zygote.run(DJANGO, folder=tmp_path)
    assert done.returncode == 0, done.stdout


def test_elsewhere_it_has_none(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str) -> None: ...

    assert not hasattr(t, "delay_on_commit")
