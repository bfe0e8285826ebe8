"""Steps, keys and fences in the threads and processes that a job starts."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from celery import Celery

from gwi_celery import ReliableTask, carry, store_for
from gwi_celery.errors import OutsideAttempt, StepNameReused
from gwi_celery.stores.base import JobRef
from tests.machine import PATIENCE

CALL = {"tenant_id": "acme", "run_id": "r1"}
JOB = JobRef("acme", "t", "run:r1")


def in_thread(function: Callable[[], Any]) -> Any:
    """What the function returns in a thread of its own, or raises there."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


CARRIERS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "carry": lambda function: in_thread(carry(function)),
    "copy_context": lambda function: in_thread(partial(contextvars.copy_context().run, function)),
    "asyncio.to_thread": lambda function: asyncio.run(asyncio.to_thread(function)),
    "asyncio, the same thread": lambda function: asyncio.run(_call(function)),
}


async def _call(function: Callable[[], Any]) -> Any:
    return function()


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
def test_a_thread_with_the_jobs_context_is_a_part_of_its_attempt(app: Celery, carrier: Any) -> None:
    seen: list[Any] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        def part() -> list[Any]:
            with self.cursor("scan") as cursor:
                cursor.advance(1)
            self.checkpoint("note", 1)
            self.check()
            return [self.step("s", seen.append, 1), self.fence, self.derive_key("charge")]

        here = [None, self.fence, self.derive_key("charge")]
        assert carrier(part) == here
        if self.generation == 1:
            raise KeyError("again")
        return here

    assert isinstance(t.apply(kwargs=CALL).result, KeyError)
    assert isinstance(t.apply(kwargs=CALL).result, list)
    assert seen == [1]
    assert {c.name for c in store_for(app).get_checkpoints(JOB)} == {"s", "scan", "note"}


async def _in_executor(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function)


STRANGERS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "a thread": in_thread,
    "asyncio's executor": lambda function: asyncio.run(_in_executor(function)),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
def test_a_thread_without_it_is_refused_and_told_how(app: Celery, stranger: Any) -> None:
    called: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        def cursor() -> None:
            with self.cursor("c"):
                called.append(1)

        for use in (
            lambda: self.step("s", called.append, 1),
            lambda: self.derive_key("charge"),
            lambda: self.fence,
            lambda: self.restore("v"),
            lambda: self.checkpoint("v", 1),
            self.check,
            cursor,
        ):
            with pytest.raises(OutsideAttempt, match=r"carry\(function\)"):
                stranger(use)
        return 1

    assert t.apply(kwargs=CALL).get() == 1
    assert called == []
    # Nothing is left behind that would take a plain use for a job's.
    assert t.step("s", int) == 0


def test_another_task_and_a_plain_call_in_a_jobs_thread_are_plain(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="other")
    def other(self: Any, *, tenant_id: str) -> list[Any]:
        return [self.step("s", int), self.fence]

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str, plain: bool = False) -> Any:
        if plain:
            return [self.step("s", int), self.fence]
        plainly = lambda: self(tenant_id=tenant_id, run_id=run_id, plain=True)  # noqa: E731
        return [
            in_thread(plainly),
            in_thread(carry(plainly)),
            in_thread(lambda: other(tenant_id=tenant_id)),
            in_thread(lambda: other.step("s", int)),
        ]

    assert t.apply(kwargs=CALL).get() == [[0, 0], [0, 0], [0, 0], 0]
    assert store_for(app).get_checkpoints(JOB) == []


def test_attempts_of_one_task_in_many_threads_are_told_apart(app: Celery) -> None:
    barrier = threading.Barrier(4)

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> list[int]:
        barrier.wait(PATIENCE)
        found = in_thread(carry(lambda: [self.fence, self.step("s", lambda: run_id)]))
        barrier.wait(PATIENCE)
        return [found == [self.fence, run_id]]

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(t.apply, kwargs={**CALL, "run_id": f"r{n}"}) for n in range(4)]
        assert [call.result().get() for call in calls] == [[True]] * 4


def test_steps_of_many_threads_of_one_attempt_are_all_saved_once(app: Celery) -> None:
    called: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        with ThreadPoolExecutor(8) as pool:
            one = carry(lambda n: self.step(f"s{n}", called.append, n))
            list(pool.map(one, range(40)))
        if self.generation == 1:
            raise KeyError("again")
        return 1

    assert isinstance(t.apply(kwargs=CALL).result, KeyError)
    assert t.apply(kwargs=CALL).get() == 1
    assert sorted(called) == list(range(40))
    assert len(store_for(app).get_checkpoints(JOB)) == 40


def test_one_name_in_two_threads_at_once_is_called_by_one(app: Celery) -> None:
    entered, leave = threading.Event(), threading.Event()

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(
                carry(lambda: self.step("s", lambda: entered.set() or leave.wait(PATIENCE)))
            )
            assert entered.wait(PATIENCE)
            with pytest.raises(StepNameReused):
                self.step("s", int)
            leave.set()
            assert first.result() is True

    assert t.apply(kwargs=CALL).get() is None


def test_a_thread_that_outlives_its_attempt_can_do_no_step(app: Celery) -> None:
    over = threading.Event()
    threads: list[threading.Thread] = []
    called: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        def late() -> None:
            assert over.wait(PATIENCE)
            self.step("late", called.append, 1)

        threads.append(threading.Thread(target=carry(late)))
        threads[0].start()

    hook, threading.excepthook = threading.excepthook, lambda args: called.append(0)
    try:
        t.apply(kwargs=CALL).get()
        over.set()
        threads[0].join()
    finally:
        threading.excepthook = hook
    assert called == [0]


def test_a_process_that_the_job_forks_is_refused(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        self.step("before", int)
        pid = os.fork()
        if pid == 0:
            try:
                self.step("in the child", int)
            except OutsideAttempt:
                os._exit(7)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert t.apply(kwargs=CALL).get() == 7
    assert [c.name for c in store_for(app).get_checkpoints(JOB)] == ["before"]
