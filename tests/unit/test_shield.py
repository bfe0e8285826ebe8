"""Nothing from outside breaks a section: soft time limits and kills at every line of a job's way."""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery, states
from celery.app.trace import build_tracer

from gwi_celery import ReliableTask, setup, shield, store_for
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.stores.base import (
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    JobRef,
    JobStatus,
    LockRef,
    Outcome,
)
from gwi_celery.stores.sqlite import SqliteStore
from gwi_celery.worker.grace import ShutdownGrace
from tests import zygote
from tests.apps import fresh_app
from tests.everyline import at, lines_of, short, some
from tests.machine import PATIENCE


class Struck(BaseException):
    """What comes from outside, in these tests."""


def strike() -> None:
    raise Struck


def hit() -> None:
    signal.raise_signal(signal.SIGUSR1)


def limit(signum: int, frame: object) -> None:
    raise SoftTimeLimitExceeded


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signals' handlers, and whether they are held back, as they were."""
    before = {number: signal.getsignal(number) for number in shield._SIGNALS}
    armed = shield._armed
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    shield._armed = armed
    shield._mine().idle = False


# --- sections and windows -------------------------------------------------------------------------


def test_a_section_holds_a_signal_back_until_its_end(handlers: None) -> None:
    signal.signal(signal.SIGUSR1, limit)
    shield.arm()
    done = []
    with pytest.raises(SoftTimeLimitExceeded) as caught, shield.section():
        signal.raise_signal(signal.SIGUSR1)
        done.append("inner")
        with shield.section():
            done.append("nested")
        done.append("end")
    assert done == ["inner", "nested", "end"]
    assert shield.from_outside(caught.value)


def test_a_window_gets_at_once_what_came_before_it_and_what_comes_in_it(handlers: None) -> None:
    signal.signal(signal.SIGUSR1, limit)
    shield.arm()
    with shield.section():
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(SoftTimeLimitExceeded), shield.window():
            pytest.fail("the user's code began")
        with pytest.raises(SoftTimeLimitExceeded), shield.window():
            signal.raise_signal(signal.SIGUSR1)
            pytest.fail("the user's code went on")
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(SoftTimeLimitExceeded), shield.window():
            pytest.fail("the section is closed again after a window")


def test_a_handler_that_is_installed_later_is_held_back_as_well(handlers: None) -> None:
    shield.arm()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    reached = False
    with pytest.raises(SystemExit), shield.section():
        signal.raise_signal(signal.SIGTERM)
        reached = True
    assert reached


def test_a_stop_that_is_held_back_is_heard_of_at_once(handlers: None) -> None:
    """A section may last as long as a call to a store that doesn't answer."""
    done = []

    class Worker:
        def hear(self) -> None:
            done.append("heard")

    worker = Worker()
    shield.arm()
    shield.on_held_stop(worker.hear)
    signal.signal(signal.SIGTERM, lambda *_: done.append("handled"))
    with shield.section():
        signal.raise_signal(signal.SIGTERM)
        done.append("end")
    assert done == ["heard", "end", "handled"]
    del worker
    signal.raise_signal(signal.SIGTERM)
    assert done[3:] == ["handled"]


def test_a_workers_time_to_stop_begins_when_the_stop_is_held_back(handlers: None) -> None:
    grace = ShutdownGrace(SimpleNamespace(app=fresh_app()))
    begun = threading.Event()
    grace._watch = begun.set  # type: ignore[method-assign]
    shield.arm()
    signal.signal(signal.SIGTERM, lambda *_: None)
    with shield.section():
        signal.raise_signal(signal.SIGTERM)
        assert begun.wait(PATIENCE)


def test_a_process_that_only_calls_tasks_keeps_its_handlers(tmp_path: Path) -> None:
    program = (
        "import signal\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "from celery import Celery\n"
        "from gwi_celery import setup\n"
        "app = Celery('t', set_as_current=False)\n"
        f"setup(app, folder={str(tmp_path)!r})\n"
        "app.send_task('x')\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
    )
    done = zygote.run(program, folder=tmp_path)
    assert done.returncode == 0, done.stdout


# --- the way of a job -----------------------------------------------------------------------------


class Jobs:
    """An app whose jobs run here as a pool process runs them."""

    def __init__(self, folder: Path) -> None:
        self.app = Celery("shielded", set_as_current=False)
        setup(self.app, folder=str(folder))
        self.store = store_for(self.app)
        self.calls = 0

        @self.app.task(base=ReliableTask, bind=True, name="shielded.job")
        def job(task: ReliableTask, *, tenant_id: str, run_id: str) -> str:
            self.calls += 1
            task.step("one", lambda: 1)
            task.checkpoint("note", 2)
            return "done"

        self.job = job
        job.__trace__ = build_tracer(job.name, job, app=self.app)

    def run(self, run_id: str, task_id: str) -> Any:
        request = {"id": task_id, "delivery_info": {}, "is_eager": False, "headers": None}
        kwargs = {"tenant_id": "t", "run_id": run_id}
        return self.job.__trace__(task_id, [], kwargs, request)

    def record(self, run_id: str) -> Any:
        return self.store.get_job(JobRef("t", "shielded.job", f"run:{run_id}"))

    def lock(self, run_id: str) -> Any:
        return self.store.get_lock(LockRef("t", ("run", run_id)))


def in_a_transaction(store: Any) -> list[sqlite3.Connection]:
    return [c for c in store.database._open_connections if c.in_transaction]


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_soft_time_limit_at_any_line_leaves_one_outcome_and_no_lock(
    every: int, tmp_path: Path, handlers: None
) -> None:
    """Hundreds of jobs, each traced line by line; ``make test`` has every ninth."""
    signal.signal(signal.SIGUSR1, limit)
    jobs = Jobs(tmp_path)
    jobs.run("first", "first")
    places = lines_of(lambda: jobs.run("measured", "measured"))
    assert len(places) > 300
    ends = set()
    for n, place in enumerate(places[::every]):
        run_id, task_id = f"r{n}", f"t{n}"
        where = short(place)
        try:
            at(place, hit, partial(jobs.run, run_id, task_id))
        except SoftTimeLimitExceeded:
            assert place[0] == shield.__file__, where
            assert jobs.record(run_id) is None, "only before anything was done"
            continue
        record = jobs.record(run_id)
        state = jobs.app.backend.get_state(task_id)
        assert record is not None, where
        assert (record.status, state) in {
            (JobStatus.SUCCEEDED, states.SUCCESS),
            (JobStatus.FAILED, states.FAILURE),
        }, where
        assert jobs.lock(run_id) is None, where
        assert not in_a_transaction(jobs.store), where
        calls = jobs.calls
        jobs.run(run_id, task_id)  # delivered again
        assert jobs.calls == calls, where
        assert jobs.record(run_id) == record, where
        ends.add(state)
    assert every > 1 or ends == {states.SUCCESS, states.FAILURE}, "it hits the job's own code too"


# --- left anywhere all the same -------------------------------------------------------------------


def a_claim(n: str) -> ClaimRequest:
    job = JobRef("t", "task", f"run:{n}")
    return ClaimRequest(job, LockRef("t", ("run", n)), n, "print", n, "me", f"nonce-{n}", 60, 60)


def checkpoint(value: bytes) -> Checkpoint:
    return Checkpoint("step", CheckpointKind.STEP, value)


# In memory are the same transactions; what its one connection adds shows in a claim.
@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        pytest.param(
            operation,
            kind,
            id=f"{operation}-{kind}",
            marks=[pytest.mark.slow] if kind == "memory" and operation != "claim" else [],
        )
        for operation in ("claim", "renew", "save", "load", "finish", "release")
        for kind in ("file", "memory")
    ],
)
def test_an_operation_of_the_store_may_be_left_at_any_line(
    tmp_path: Path, kind: str, operation: str
) -> None:
    store = SqliteStore(tmp_path if kind == "file" else None)
    other = SqliteStore(tmp_path) if kind == "file" else store
    won = Outcome(JobStatus.SUCCEEDED, b"1")

    def prepared(n: str) -> Any:
        if operation == "claim":
            return lambda: store.claim(a_claim(n))
        answer = store.claim(a_claim(n))
        assert isinstance(answer, Claimed)
        lease = answer.lease
        return {
            "renew": lambda: store.renew(lease),
            "save": lambda: store.save(lease, checkpoint(b"1")),
            "load": lambda: store.load(lease),
            "finish": lambda: store.finish(lease, won),
            "release": lambda: store.release(lease),
        }[operation]

    prepared("warm")()
    places = lines_of(prepared("measured"))
    assert len(places) > 20
    missed = 0
    for n, place in enumerate(some(places)):
        name = f"{operation}-{n}"
        run = prepared(name)
        with suppress(Struck):  # some lines are passed only now and then
            at(place, strike, run)
            missed += 1
        assert not in_a_transaction(store), short(place)
        assert isinstance(other.claim(a_claim(f"{name}-other")), Claimed), short(place)
        run()  # sent again, it converges
        _check(store, operation, name)
    assert missed < 5
    store.close()
    other.close()


def _check(store: SqliteStore, operation: str, name: str) -> None:
    request = a_claim(name)
    record, lock = store.get_job(request.job), store.get_lock(request.lock)
    assert record is not None
    assert record.attempt == 1
    if operation == "finish":
        assert (record.status, record.outcome, lock) == (JobStatus.SUCCEEDED, b"1", None)
    elif operation == "release":
        assert (record.status, lock) == (JobStatus.PENDING, None)
    else:
        assert record.status is JobStatus.RUNNING
        assert lock is not None


@pytest.mark.parametrize("operation", ["publish", "ack"])
def test_an_operation_of_the_broker_may_be_left_at_any_line(tmp_path: Path, operation: str) -> None:
    broker = EmbeddedBroker(tmp_path)
    other = EmbeddedBroker(tmp_path)
    broker.declare_queue(QueueSpec("q"))

    receiver = broker.receiver()
    receiver.subscribe("q")

    def publish() -> None:
        broker.publish("", "q", OutgoingMessage(b"x", {}))

    def prepared() -> Any:
        if operation == "publish":
            return publish
        publish()
        received = receiver.poll("q", 1)
        assert received
        return lambda: broker.ack(received)

    prepared()()
    places = lines_of(prepared())
    missed = 0
    for place in some(places):
        run = prepared()
        with suppress(Struck):  # some lines are passed only now and then
            at(place, strike, run)
            missed += 1
        open_ = [c for c in broker.database._open_connections if c.in_transaction]
        assert not open_, short(place)
        other.publish("", "q", OutgoingMessage(b"y", {}))
        run()
    assert missed < 5
    receiver.close()
    broker.close()
    other.close()


_WAITS = """
from gevent import monkey; monkey.patch_all()
import threading, gevent
from gwi_celery import shield

def work():
    with shield.task():
        assert not threading.Event().wait(0.01), "a wait of the section's own ends in time"
        with shield.window():
            outer = gevent.Timeout.start_new(0.01)
        gevent.sleep(0.05)
        held.append("until the end")
        try:
            with shield.window():
                held.append("raised too late")
        except gevent.Timeout as exc:
            assert exc is outer

held = []
with gevent.Timeout(20):
    gevent.spawn(work).get()
assert held == ["until the end"], held
"""


def test_a_sections_own_waits_end_in_time_under_gevent(tmp_path: Path) -> None:
    done = zygote.run(_WAITS, folder=tmp_path, gevent=True)
    assert done.returncode == 0, done.stdout
