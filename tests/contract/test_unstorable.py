"""A state that can't be stored, on every result backend: its message is redelivered."""

from __future__ import annotations

from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import states
from celery.exceptions import Reject
from kombu.exceptions import EncodeError

from gwi_celery import failures
from gwi_celery.backends.results import _RETRIES
from gwi_celery.errors import StoreUnavailable, StoreUnusable
from gwi_celery.worker import tracer
from tests.contract.backends import BackendCase
from tests.machine import PATIENCE


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.fixture
def tasks(results: BackendCase, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    app = results.app
    monkeypatch.setattr(results.backend, "max_retries", 1)

    @app.task(shared=False, name="succeeds")
    def succeeds() -> int:
        return 3

    @app.task(shared=False, name="starts", track_started=True)
    def starts() -> int:
        return 3

    @app.task(shared=False, name="fails")
    def fails() -> None:
        raise ValueError("on purpose")

    @app.task(shared=False, name="retries", bind=True, max_retries=None)
    def retries(self: Any) -> None:
        raise self.retry(exc=ValueError("later"), countdown=60)

    @app.task(shared=False, name="ends_oddly")
    def ends_oddly() -> None:
        raise Odd("a")

    @app.task(shared=False, name="own_kind")
    def own_kind() -> None:
        raise BaseException("of its own")

    return {task.name: task for task in (succeeds, starts, fails, retries, ends_oddly, own_kind)}


def run(results: BackendCase, task: Any) -> Any:
    request = {"id": "t1", "task": task.name, "retries": 0, "is_eager": False}
    request.update(delivery_info={}, args=(), kwargs={}, hostname="w")
    return tracer.build(results.app, task, "w")("t1", (), {}, request)


def is_redelivered(traced: Any) -> bool:
    result, info, _, _ = traced
    assert isinstance(result, ExceptionInfo)
    return bool(info) and isinstance(result.exception, Reject) and result.exception.requeue


ENDS = {
    "succeeds": states.SUCCESS,
    "starts": states.SUCCESS,
    "fails": states.FAILURE,
    "retries": states.RETRY,
    "ends_oddly": states.FAILURE,
    "own_kind": states.FAILURE,
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(
    "raised",
    [StoreUnavailable("away"), StoreUnusable("gone"), OSError("full"), RuntimeError("bug")],
)
def test_whatever_the_backend_raises_the_message_is_redelivered(
    results: BackendCase,
    tasks: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    raised: Exception,
) -> None:
    def refuse(*args: Any) -> None:
        raise raised

    with monkeypatch.context() as away:
        away.setattr(results.backend, "put", refuse)
        assert is_redelivered(run(results, tasks[name]))
    assert results.app.AsyncResult("t1").state == states.PENDING
    run(results, tasks[name])
    assert results.app.AsyncResult("t1").state == ENDS[name]


def test_a_store_that_is_unavailable_for_a_moment_is_asked_again(
    results: BackendCase, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, left = results.backend.put, [1, 2, 3]

    def refuse(*args: Any) -> None:
        if left:
            raise StoreUnavailable(f"{left.pop()} more times")
        put(*args)

    monkeypatch.setattr(results.backend, "put", refuse)
    monkeypatch.setattr(results.backend, "max_retries", _RETRIES)
    assert run(results, tasks["succeeds"])[1] is None
    assert results.app.AsyncResult("t1").get(timeout=PATIENCE) == 3


def test_a_result_without_a_json_form_is_a_failure(results: BackendCase) -> None:
    @results.app.task(shared=False, name="returns")
    def returns() -> Any:
        return {"__type__": "x", "__value__": object()} if returns.odd else object()

    for returns.odd in (True, False):
        result, info, _, _ = run(results, returns)
        assert info.state == states.FAILURE
        assert isinstance(result.exception, failures.Raised)
        assert isinstance(results.app.AsyncResult("t1").get(propagate=False), EncodeError)


def test_what_the_main_process_gets_is_texts(results: BackendCase, tasks: dict[str, Any]) -> None:
    for name in ("fails", "ends_oddly", "own_kind", "retries"):
        result, _, _, _ = run(results, tasks[name])
        assert result.tb is None
        cause = getattr(result.exception, "exc", result.exception)
        assert type(cause).__mro__[1] is failures.Raised, name


def test_what_a_handler_raises_changes_no_outcome(results: BackendCase) -> None:
    class Handling(results.app.Task):  # type: ignore[name-defined,misc]
        def on_failure(self, *args: Any) -> None:
            raise RuntimeError("the handler's own")

        def on_retry(self, *args: Any) -> None:
            raise RuntimeError("the handler's own")

    @results.app.task(shared=False, name="handled", base=Handling, bind=True)
    def handled(self: Any) -> None:
        raise self.retry(countdown=60) if handled.again else ValueError("on purpose")

    for handled.again, state in ((True, states.RETRY), (False, states.FAILURE)):
        tracer.install(results.app)
        handled.__trace__("t1", (), {}, {"id": "t1", "delivery_info": {}, "retries": 0})
        assert results.app.AsyncResult("t1").state == state
