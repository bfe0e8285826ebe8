"""``gwi_celery.jobs`` on the jobs of a worker in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, states
from kombu.exceptions import OperationalError

from gwi_celery import ReliableTask, audit, broker_for, jobs, setup, store_for
from gwi_celery.errors import InvalidCall
from gwi_celery.jobs import JobRef, JobStatus
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import drained, eventually


@dataclass
class Bench:
    app: Celery
    review: Any = None
    note: Any = None
    #: What was called, in order.
    seen: list[str] = field(default_factory=list)
    #: What a job does after its first step, by its run; None: it goes on.
    then: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    tenant: str = ""

    def call(self, run: str, **options: Any) -> Any:
        return self.review.apply_async(
            kwargs={"tenant_id": self.tenant, "run_id": run, "depth": 1}, **options
        )

    def status(self, result: Any) -> JobStatus | None:
        found = jobs.get(result, app=self.app)
        return None if found is None else found.record.status

    def becomes(self, result: Any, status: JobStatus) -> jobs.JobRecord:
        eventually(lambda: self.status(result) is status, what=f"the job is {status.value}")
        found = jobs.get(result, app=self.app)
        assert found is not None
        return found.record


@pytest.fixture(scope="module")
def working() -> Iterator[Bench]:
    app = fresh_app(code_version="v7", contention_delay=0.05, lock_ttl=3)
    app.conf.worker_prefetch_multiplier = 1
    bench = Bench(app)

    @app.task(shared=False, base=ReliableTask, bind=True, name="review", max_retries=3)
    def review(self: Any, *, tenant_id: str, run_id: str, depth: int) -> Any:
        self.step("list", lambda: bench.seen.append(f"list {run_id}"))
        then = bench.then.get(run_id)
        found = None if then is None else then(self)
        self.step("post", lambda: bench.seen.append(f"post {run_id}"))
        return [run_id, depth, found]

    @app.task(shared=False, base=ReliableTask, name="note")
    def note(*, tenant_id: str, run_id: str) -> str:
        bench.seen.append(f"note {run_id}")
        return run_id

    @review.on_cancel
    def undo(self: Any, *, tenant_id: str, run_id: str, depth: int) -> None:
        then = bench.then.get(f"undo {run_id}")
        if then is not None:
            then(self)
        self.step("undo", lambda: bench.seen.append(f"undone {run_id} {depth}"))

    bench.review, bench.note = review, note
    with worker_in_thread(app, pool="threads", concurrency=3):
        yield bench


@pytest.fixture
def bench(working: Bench) -> Iterator[Bench]:
    working.tenant = uuid4().hex[:8]
    working.seen.clear()
    working.then.clear()
    yield working
    working.then.clear()
    eventually(lambda: drained(broker_for(working.app)), what="no message is left")


def hold(bench: Bench, run: str) -> threading.Event:
    """Have the run's job wait, at boundaries, until the event is set or the test is over."""
    go_on = threading.Event()

    def wait(task: Any) -> None:
        while run in bench.then and not go_on.wait(0.01):
            task.check()

    bench.then[run] = wait
    return go_on


def fail(bench: Bench, run: str) -> None:
    def failing(task: Any) -> None:
        raise ValueError("bad\nand worse")

    bench.then[run] = failing


# --- looking --------------------------------------------------------------------------------------


def test_a_job_tells_everything(bench: Bench) -> None:
    result = bench.call("r1", labels={"customer": "7"}, priority=3)
    assert result.get(timeout=PATIENCE) == ["r1", 1, None]
    found = jobs.get(result.id, app=bench.app)
    assert found is not None
    record = found.record
    assert (record.status, record.origin.task_id, record.origin.queue) == (
        *(JobStatus.SUCCEEDED, result.id, "celery"),
    )
    assert (record.origin.labels, record.origin.code_version) == ({"customer": "7"}, "v7")
    assert [(step.name, step.size > 0, step.saved_at > 0) for step in found.steps] == [
        ("list", True, True),
        ("post", True, True),
    ]
    (attempt,) = record.attempts
    assert attempt.end is not None
    assert (attempt.number, attempt.end.how, attempt.task_id) == (1, "succeeded", result.id)
    assert found.call is not None
    assert found.call["kwargs"] == {"tenant_id": bench.tenant, "run_id": "r1", "depth": 1}
    assert found.call["priority"] == 3
    assert found.explanation.startswith("succeeded at ")
    assert jobs.get(JobRef(bench.tenant, "review", "run:r1"), app=bench.app) == found
    assert jobs.get(record, app=bench.app) == found
    assert jobs.get("nobody", app=bench.app) is None
    assert "no worker has seen it" in jobs.explain("nobody", app=bench.app)


def test_jobs_are_found_by_what_people_know(bench: Bench) -> None:
    fail(bench, "r2")
    for run, customer in (("r1", "7"), ("r2", "8"), ("r3", "7")):
        bench.call(run, labels={"customer": customer}).get(timeout=PATIENCE, propagate=False)

    def found(**of: Any) -> list[str | None]:
        of.setdefault("tenant", bench.tenant)
        return [record.run_id for record in jobs.find(app=bench.app, **of).jobs]

    assert found() == ["r3", "r2", "r1"]
    assert found(status="failed") == found(status=JobStatus.FAILED) == ["r2"]
    assert found(label="customer=7") == found(label=("customer", "7")) == ["r3", "r1"]
    assert found(error=ValueError) == found(error="ValueError") == ["r2"]
    assert found(tenant=None, run="r2", error="ValueError")[:1] == ["r2"]
    assert found(task="review", run="r1") == ["r1"]
    assert found(task="note") == []
    assert found(older_than=3600) == found(older_than=timedelta(hours=1)) == []
    assert found(since=time.time() - 3600) == ["r3", "r2", "r1"]
    assert found(since=datetime.now(timezone.utc) + timedelta(hours=1)) == []
    first = jobs.find(tenant=bench.tenant, limit=2, app=bench.app)
    assert found(page=first.next_token) == ["r1"]
    for wrong in ({"status": "done"}, {"label": "customer"}, {"since": "today"}, {"limit": 0}):
        with pytest.raises(InvalidCall):
            found(**wrong)


def test_labels_are_few_and_short(bench: Bench) -> None:
    for labels in (
        {"a=b": "c"},
        {"a": 1},
        {"a": "x" * 300},
        {str(n): "x" for n in range(9)},
        {"": "x"},
        {"a": "\ud800"},
    ):
        with pytest.raises(InvalidCall, match="labels="):
            bench.call("r", labels=labels)


def test_explain_says_why_a_job_stands_where_it_stands(bench: Bench) -> None:
    go_on = hold(bench, "r1")
    holder = bench.call("r1")
    bench.becomes(holder, JobStatus.RUNNING)
    assert jobs.explain(holder, app=bench.app).startswith("runs on ")
    waiter = bench.note.delay(tenant_id=bench.tenant, run_id="r1")
    record = bench.becomes(waiter, JobStatus.WAITING)
    why = jobs.explain(waiter, app=bench.app)
    assert why.startswith(f"waits for the lock run:r1 of {bench.tenant}, held by ")
    assert " s at the latest" in why
    assert record.waits is not None
    assert (record.waits.kind, record.origin.task_id) == ("lock", waiter.id)
    assert record.attempts == ()
    go_on.set()
    assert waiter.get(timeout=PATIENCE) == "r1"
    fail(bench, "r3")
    failed = bench.call("r3")
    bench.becomes(failed, JobStatus.FAILED)
    assert "with ValueError: bad: replay it" in jobs.explain(failed, app=bench.app)


def test_a_retry_says_what_it_waits_for(bench: Bench) -> None:
    def retrying(task: Any) -> None:
        if task.request.retries == 0:
            raise task.retry(exc=OSError("no route"), countdown=0.5)

    bench.then["r1"] = retrying
    result = bench.call("r1")
    record = bench.becomes(result, JobStatus.PENDING)
    assert (record.error_type, record.error) == ("OSError", "no route")
    assert "attempt 1 ended with OSError: no route; it is tried again" in jobs.explain(
        result, app=bench.app
    )
    assert result.get(timeout=PATIENCE)
    record = bench.becomes(result, JobStatus.SUCCEEDED)
    assert [past.end and past.end.how for past in record.attempts] == ["retried", "succeeded"]
    assert record.error_type == ""


def test_children_are_known_by_who_called_them(bench: Bench) -> None:
    tenant = bench.tenant
    bench.then["r1"] = lambda task: bench.note.delay(tenant_id=tenant, run_id="child").id
    result = bench.call("r1")
    child = bench.app.AsyncResult(result.get(timeout=PATIENCE)[2])
    child.get(timeout=PATIENCE)
    found = jobs.get(result, app=bench.app)
    assert found is not None
    assert [each.run_id for each in found.children] == ["child"]
    assert found.children[0].origin.root_id == result.id


# --- progress -------------------------------------------------------------------------------------


def test_progress_is_shown_to_the_caller_and_kept(bench: Bench) -> None:
    go_on = threading.Event()

    def telling(task: Any) -> None:
        for n in range(50):
            task.progress(n, 100, "parsing")  # all within a second: one write
        go_on.wait(PATIENCE)

    bench.then["r1"] = telling
    result = bench.call("r1")
    eventually(lambda: result.state == "PROGRESS", what="progress is shown")
    assert result.info == {"done": 0, "total": 100, "text": "parsing"}
    found = jobs.get(result, app=bench.app)
    assert found is not None
    assert found.record.progress is not None
    assert (found.record.progress.done, found.record.progress.text) == (0, "parsing")
    assert ", 0 of 100 done (parsing)" in found.explanation
    go_on.set()
    assert result.get(timeout=PATIENCE)
    assert result.state == states.SUCCESS


def test_progress_must_be_numbers(bench: Bench) -> None:
    for wrong in (("1",), (1, float("nan")), (1, 2, 3), (True,)):
        with pytest.raises(InvalidCall, match="progress"):
            bench.review.progress(*wrong)
    bench.review.progress(1, 2, "of a plain call")


# --- changing -------------------------------------------------------------------------------------


def test_a_cancelled_job_stops_at_a_boundary_and_one_that_waits_never_begins(bench: Bench) -> None:
    hold(bench, "r1")
    running = bench.call("r1")
    bench.becomes(running, JobStatus.RUNNING)
    waiter = bench.note.delay(tenant_id=bench.tenant, run_id="r1")
    bench.becomes(waiter, JobStatus.WAITING)
    (ref,) = jobs.cancel(waiter, "not needed", app=bench.app)
    assert ref == JobRef(bench.tenant, "note", "run:r1")
    [cancelled] = jobs.cancel(running, "wrong customer", app=bench.app)
    assert jobs.cancel(running, app=bench.app) == []
    assert "was cancelled" in jobs.explain(running, app=bench.app)
    assert jobs.explain(running, app=bench.app).endswith(": wrong customer")
    store = store_for(bench.app)
    lease = store.get_lock(jobs.LockRef(bench.tenant, ("run", "r1")))
    assert lease is None or lease.job != cancelled, "the lock is free, or its compensation's by now"
    for result in (running, waiter):
        eventually(lambda r=result: r.state == states.REVOKED, what="its caller knows")
    assert "note r1" not in bench.seen
    with pytest.raises(InvalidCall, match="no record"):
        jobs.cancel("nobody", app=bench.app)
    unseen = JobRef(bench.tenant, "note", "run:later")
    assert jobs.cancel(unseen, app=bench.app) == [unseen]
    later = bench.note.delay(tenant_id=bench.tenant, run_id="later")
    eventually(lambda: later.state == states.REVOKED, what="it never began")


def test_a_failed_job_is_replayed_by_one_who_knows_its_id(bench: Bench) -> None:
    fail(bench, "r1")
    tenant = bench.tenant
    job = chain(
        bench.review.si(tenant_id=tenant, run_id="r1", depth=2).set(labels={"customer": "7"}),
        bench.note.si(tenant_id=tenant, run_id="after"),
    ).apply_async()
    first = job.parent
    bench.becomes(first, JobStatus.FAILED)
    bench.then.clear()
    again = jobs.replay(first.id, resume=True, app=bench.app)
    assert again.get(timeout=PATIENCE) == ["r1", 2, None]
    eventually(lambda: "note after" in bench.seen, what="its chain goes on")
    assert bench.seen == ["list r1", "post r1", "note after"]
    found = jobs.get(again, app=bench.app)
    assert found is not None
    assert (found.record.generation, found.record.origin.labels) == (2, {"customer": "7"})
    assert jobs.replay(again, from_step="post", app=bench.app).get(timeout=PATIENCE)
    assert bench.seen == ["list r1", "post r1", "note after", "post r1"]
    assert jobs.replay(again, app=bench.app).get(timeout=PATIENCE)
    assert bench.seen[4:] == ["list r1", "post r1"]
    assert [entry.what for entry in audit.entries(bench.app, tenant=tenant)] == ["replay"] * 3


def test_what_has_not_ended_or_kept_its_call_is_not_replayed(bench: Bench) -> None:
    go_on = hold(bench, "r1")
    result = bench.call("r1")
    bench.becomes(result, JobStatus.RUNNING)
    with pytest.raises(InvalidCall, match="only what has ended is replayed"):
        jobs.replay(result, app=bench.app)
    go_on.set()
    result.get(timeout=PATIENCE)
    with pytest.raises(InvalidCall, match="recorded steps are"):
        jobs.replay(result, from_step="nothing", app=bench.app)
    with pytest.raises(InvalidCall, match="a job is named by"):
        jobs.replay(7, app=bench.app)
    forgetful = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    url = bench.app.conf.broker_url
    setup(forgetful, broker_url=url, store_url=url, keep_calls=False)
    with pytest.raises(InvalidCall, match="no reliable task 'review'"):
        jobs.replay(result, app=forgetful)
    forgetful.close()


def test_a_job_without_a_run_is_named_by_its_task(bench: Bench) -> None:
    result = bench.review.apply_async(
        kwargs={"tenant_id": bench.tenant, "run_id": None, "depth": 1}
    )
    assert result.get(timeout=PATIENCE) == [None, 1, None]
    again = jobs.replay(result, app=bench.app)
    assert again.get(timeout=PATIENCE) == [None, 1, None]
    assert again.id != result.id
    record = bench.becomes(again, JobStatus.SUCCEEDED)
    assert record.generation == 2
    assert bench.seen == ["list None", "post None"] * 2


def test_a_tree_is_cancelled_whole_and_what_has_not_begun_never_does(bench: Bench) -> None:
    tenant = bench.tenant
    hold(bench, "child")
    hold(bench, "r1")
    held = bench.then["r1"]

    def calling(task: Any) -> None:
        bench.call("child")
        held(task)

    bench.then["r1"] = calling
    parent = bench.call("r1")
    eventually(lambda: "list child" in bench.seen, what="the child runs")
    # A call that no worker has seen yet: it is published, and due later.
    late = bench.note.apply_async(
        kwargs={"tenant_id": tenant, "run_id": "late"}, countdown=0.5, parent_id=parent.id
    )
    ended = jobs.cancel(parent, "wrong customer", tree=True, app=bench.app)
    assert {job.key for job in ended} == {"run:r1", "run:child"}
    eventually(late.ready)
    assert late.state == states.REVOKED, "it never began"
    assert [line for line in bench.seen if "undone" not in line] == ["list r1", "list child"]
    found = jobs.get(parent, app=bench.app)
    assert found is not None
    called = [each for each in found.children if each.job.task != "review.on_cancel"]
    assert {each.status for each in called} == {JobStatus.CANCELLED}
    assert {each.run_id for each in called} == {"child", "late"}


def test_a_tree_s_cancellation_leaves_alone_what_undoes_its_jobs(bench: Bench) -> None:
    hold(bench, "r1")
    go_on = hold(bench, "undo r1")
    parent = bench.call("r1")
    bench.becomes(parent, JobStatus.RUNNING)

    def undoing() -> list[JobStatus]:
        found = jobs.get(parent, app=bench.app)
        return [] if found is None else [each.status for each in found.children]

    jobs.cancel(parent, tree=True, app=bench.app)
    eventually(lambda: undoing() == [JobStatus.RUNNING], what="it was not kept from beginning")
    jobs.cancel(parent, tree=True, app=bench.app)
    assert undoing() == [JobStatus.RUNNING]
    go_on.set()
    eventually(lambda: undoing() == [JobStatus.SUCCEEDED])
    assert "undone r1 1" in bench.seen


def test_what_undoes_a_cancelled_job_runs_once(bench: Bench) -> None:
    hold(bench, "r1")
    result = bench.call("r1")
    bench.becomes(result, JobStatus.RUNNING)
    for _ in range(2):
        jobs.cancel(result, "wrong customer", app=bench.app)
    # The worker that runs it asks for the same, too.
    eventually(lambda: result.state == states.REVOKED, what="its worker has stopped")
    eventually(lambda: drained(broker_for(bench.app)), what="no message is left")
    assert bench.seen == ["list r1", "undone r1 1"]
    undone = jobs.find(tenant=bench.tenant, task="review.on_cancel", app=bench.app).jobs
    assert [(each.status, each.origin.parent_id) for each in undone] == [
        (JobStatus.SUCCEEDED, result.id)
    ]

    # By the store alone, say by another tool: the worker asks.
    hold(bench, "r2")
    result = bench.call("r2")
    record = bench.becomes(result, JobStatus.RUNNING)
    store_for(bench.app).cancel(record.job, "enough")
    eventually(lambda: "undone r2 1" in bench.seen, what="it is undone")

    # What never began has nothing to undo.
    go_on = hold(bench, "r3")
    bench.becomes(bench.call("r3"), JobStatus.RUNNING)
    unseen = JobRef(bench.tenant, "review", "run:r4")
    jobs.cancel(unseen, app=bench.app)
    later = bench.call("r4")
    eventually(lambda: later.state == states.REVOKED, what="it never began")
    go_on.set()
    assert not any("undone r4" in line for line in bench.seen)


def test_a_fork_begins_with_the_others_earlier_steps(bench: Bench) -> None:
    result = bench.call("r1", labels={"customer": "7"})
    result.get(timeout=PATIENCE)
    forked = jobs.fork(result, run_id="r2", from_step="post", changes={"depth": 5}, app=bench.app)
    assert forked.get(timeout=PATIENCE) == ["r2", 5, None]
    assert bench.seen == ["list r1", "post r1", "post r2"]
    found = jobs.get(forked, app=bench.app)
    assert found is not None
    record = found.record
    assert (record.run_id, record.origin.task_id, record.origin.labels) == (
        *("r2", forked.id, {"customer": "7"}),
    )
    assert [past.end and past.end.how for past in record.attempts] == ["forked", "succeeded"]
    assert [step.name for step in found.steps] == ["list", "post"]
    former = jobs.get(result, app=bench.app)
    assert former is not None
    assert former.record.generation == 1
    whole = jobs.fork(result, run_id="r3", app=bench.app)
    assert whole.get(timeout=PATIENCE) == ["r3", 1, None]
    assert bench.seen[3:] == []
    for wrong, why in (
        ({"run_id": "r2"}, "there is a job"),
        ({"run_id": "r1"}, "there is a job"),
        ({"run_id": "r5", "from_step": "no"}, "recorded steps are"),
    ):
        with pytest.raises(InvalidCall, match=why):
            jobs.fork(result, app=bench.app, **wrong)


def test_a_fork_that_could_not_be_sent_can_be_repeated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = bench.call("r1")
    result.get(timeout=PATIENCE)

    def unavailable(**options: Any) -> None:
        raise OperationalError("no broker")

    monkeypatch.setattr(bench.review, "apply_async", unavailable)
    with pytest.raises(OperationalError):
        jobs.fork(result, run_id="r2", app=bench.app)
    monkeypatch.undo()
    assert jobs.fork(result, run_id="r2", app=bench.app).get(timeout=PATIENCE) == ["r2", 1, None]
    assert bench.seen == ["list r1", "post r1"]


def test_a_revoked_job_that_waited_is_not_left_waiting(bench: Bench) -> None:
    go_on = hold(bench, "r1")
    bench.becomes(bench.call("r1"), JobStatus.RUNNING)
    waiter = bench.note.apply_async(kwargs={"tenant_id": bench.tenant, "run_id": "r1"}, expires=0.3)
    bench.becomes(waiter, JobStatus.WAITING)
    record = bench.becomes(waiter, JobStatus.FAILED)
    assert record.attempts[-1].end is not None
    assert record.attempts[-1].end.how == "revoked"
    go_on.set()
    assert "note r1" not in bench.seen
