"""What a task's run leaves is freed as it ends: nothing of it waits for Python's cycle collector."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, Task
from celery.app import trace
from celery.exceptions import Ignore, Reject

from gwi_celery import ReliableTask
from tests.apps import fresh_app


class Held:
    """Stands for whatever a task had in its variables."""


class Refused(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.held = Held()
        alive.append(weakref.ref(self.held))


#: What the tasks had: all must be gone once a task has ended.
alive: list[weakref.ref[Any]] = []


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app()
    alive.clear()
    logging.disable()  # pytest keeps the records of a test, and with them the exceptions
    yield app
    logging.disable(logging.NOTSET)
    app.close()


def _succeeds(self: Any) -> None:
    self.step("one", lambda: 1) if isinstance(self, ReliableTask) else None


def _fails(self: Any) -> None:
    raise Refused("no")


def _fails_without_a_json_form(self: Any) -> None:
    error = Refused("no")
    error.args = (object(),)
    raise error


def _fails_with_a_cause(self: Any) -> None:
    try:
        _fails(self)
    except Refused as exc:
        raise KeyError("no") from exc


def _fails_with_a_context(self: Any) -> None:
    try:
        _fails(self)
    except Refused:
        raise KeyError("no")  # noqa: B904 it is what users write


def _retries(self: Any) -> None:
    raise self.retry(exc=Refused("again"), countdown=60)


def _retries_what_it_caught(self: Any) -> None:
    try:
        _fails(self)
    except Refused as exc:
        raise self.retry(exc=exc, countdown=60)  # noqa: B904 Celery's own way of it


def _ignores(self: Any) -> None:
    raise Ignore("enough")


def _rejects(self: Any) -> None:
    try:
        _fails(self)
    except Refused as exc:
        raise Reject(exc, requeue=False)  # noqa: B904


ENDS = [
    _succeeds,
    _fails,
    _fails_without_a_json_form,
    _fails_with_a_cause,
    _fails_with_a_context,
    _retries,
    _retries_what_it_caught,
    _ignores,
    _rejects,
]


@pytest.mark.parametrize("base", [Task, ReliableTask], ids=["plain", "reliable"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__.strip("_"))
def test_nothing_outlives_a_run(app: Celery, base: type, end: Any) -> None:
    @app.task(shared=False, base=base, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        held = Held()
        alive.extend([weakref.ref(held), weakref.ref(self.request)])
        if base is ReliableTask:
            alive.append(weakref.ref(self._running_job))
        end(self)

    app.finalize()
    task = app.tasks["t"]
    tracer = trace.build_tracer("t", task, app=app)
    id = uuid4().hex
    kwargs = {"tenant_id": "acme", "run_id": "r1"}
    request = {
        **{"id": id, "root_id": id, "task": "t", "args": [], "kwargs": kwargs, "retries": 0},
        **{"delivery_info": {"routing_key": "celery"}, "headers": {}, "is_eager": False},
    }
    gc.collect()
    gc.disable()
    try:
        tracer(id, (), kwargs, request)
        left = [ref() for ref in alive if ref() is not None]
    finally:
        gc.enable()
    assert alive
    assert not left


def test_an_eager_caller_still_has_the_traceback(app: Celery) -> None:
    app.conf.task_always_eager = True

    @app.task(shared=False, name="t")
    def t() -> None:
        _fails(None)

    result = t.delay()
    names = []
    tb = result.result.__traceback__
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert "_fails" in names
