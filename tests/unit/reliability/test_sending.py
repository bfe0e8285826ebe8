"""Keys and deadlines of a call, in every way that Celery lets one make it: kept, or refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature, xmap

from gwi_celery import Reliable, ReliableTask, broker_for, setup, store_for
from gwi_celery.brokers.base import DEATH_REASON
from gwi_celery.errors import DeadlineExceeded, InvalidCall, MissingTenant
from gwi_celery.stores.base import JobRef, JobStatus
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import dead_letters, eventually

Ran = list[Any]


@pytest.fixture
def ran() -> Ran:
    return []


@pytest.fixture
def app(ran: Ran) -> Iterator[Celery]:
    app = fresh_app()

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, previous: Any = None, *, tenant_id: str, **rest: Any) -> int:
        ran.append(self.request.headers)
        return len(ran)

    @app.task(shared=False, base=ReliableTask, bind=True, name="retrying", max_retries=3)
    def retrying(self: Any, *, tenant_id: str, **retry: Any) -> None:
        ran.append(self.request.headers)
        if self.request.retries < 2:
            raise self.retry(countdown=0, **retry)

    @app.task(shared=False, base=ReliableTask, name="limited", reliable=Reliable(deadline=60))
    def limited(*, tenant_id: str) -> None: ...

    @app.task(shared=False, name="plain")
    def plain(**kwargs: Any) -> None: ...

    yield app
    app.close()


@pytest.fixture
def worker(app: Celery) -> Iterator[None]:
    with worker_in_thread(app):
        yield


TENANT = {"tenant_id": "acme"}

WAYS: dict[str, Callable[[Celery, dict[str, Any]], Any]] = {
    "apply_async": lambda app, o: app.tasks["t"].apply_async(kwargs=TENANT, **o),
    "send_task": lambda app, o: app.send_task("t", kwargs=TENANT, **o),
    "set": lambda app, o: app.tasks["t"].s(**TENANT).set(**o).delay(),
    "signature": lambda app, o: app.tasks["t"].s(**TENANT).apply_async(**o),
    "by name": lambda app, o: app.signature("t", kwargs=TENANT, options=o).delay(),
    "in a group": lambda app, o: group([app.tasks["t"].s(**TENANT).set(**o)])().results[0],
    "second of a chain": lambda app, o: chain(
        app.tasks["t"].s(**TENANT), app.tasks["t"].s(**TENANT).set(**o), app=app
    )(),
    "a chord's body": lambda app, o: chord(
        [app.tasks["t"].s(**TENANT)], app.tasks["t"].s(**TENANT).set(**o), app=app
    )(),
}


def _unregistered(app: Celery, options: dict[str, Any]) -> Any:
    """By an app that doesn't have the task, as another service would."""
    other = Celery("other", set_as_current=False, broker=app.conf.broker_url)
    setup(other, store_url=app.conf.result_backend)
    result = other.send_task("t", kwargs=TENANT, **options)
    return app.AsyncResult(result.id)


WAYS["unregistered"] = _unregistered
#: Ways in which the task is called once more, before the call that is looked at.
TWICE = {"second of a chain", "a chord's body"}


@pytest.mark.parametrize("name", WAYS)
def test_a_key_and_a_deadline_reach_the_worker(
    app: Celery, ran: Ran, worker: None, name: str
) -> None:
    way, before = WAYS[name], time.time()
    first = way(app, {"idempotency_key": "k", "deadline": 600}).get(timeout=PATIENCE)
    assert ran[-1]["gwi_key"] == "k"
    assert before + 600 <= ran[-1]["gwi_deadline"] <= time.time() + 600
    assert store_for(app).get_job(JobRef("acme", "t", "key:k")) is not None
    if name not in TWICE:
        assert way(app, {"idempotency_key": "k"}).get(timeout=PATIENCE) == first
        assert len(ran) == 1


def test_the_key_and_deadline_of_an_eager_call(app: Celery, ran: Ran) -> None:
    task = app.tasks["t"]
    for call in (task.apply, task.s(**TENANT).apply):
        assert call(kwargs=TENANT, idempotency_key="k", deadline=600).get() == 1
    assert task.s(**TENANT).set(idempotency_key="k").apply().get() == 1
    assert ran[0]["gwi_key"] == "k"
    late = task.apply(kwargs=TENANT, deadline=-1)
    assert isinstance(late.result, DeadlineExceeded)


@pytest.mark.parametrize(
    "nested", [{"trace": "1"}, {"gwi_key": "theirs", "trace": "1"}, {}, None, "x"]
)
def test_headers_within_the_headers_take_nothing_away(
    app: Celery, ran: Ran, worker: None, nested: Any
) -> None:
    """Monitoring libraries put theirs there."""
    task = app.tasks["t"]
    for _ in range(3):
        headers = {"headers": nested, "tenant_id": "acme", "custom": 1}
        options = {"idempotency_key": "k", "deadline": 600, "headers": headers}
        assert task.apply_async(kwargs=TENANT, **options).get(timeout=PATIENCE) == 1
    (seen,) = ran
    assert (seen["gwi_key"], seen["gwi_tenant"], seen["custom"]) == ("k", "acme", 1)
    assert "gwi_deadline" in seen
    if isinstance(nested, dict):
        assert seen.get("trace") == nested.get("trace")


@pytest.mark.parametrize("given", [{}, {"headers": {"mine": 1}}, {"deadline": 900}])
def test_a_retry_keeps_what_its_call_was_promised(
    app: Celery, ran: Ran, worker: None, given: dict[str, Any]
) -> None:
    headers = {"headers": {"trace": "1"}}
    result = app.tasks["retrying"].apply_async(
        kwargs={**TENANT, **given}, idempotency_key="k", deadline=600, headers=headers
    )
    assert result.get(timeout=PATIENCE) is None
    assert [seen["gwi_key"] for seen in ran] == ["k"] * 3
    assert [seen.get("trace") for seen in ran] == ["1"] * 3
    left = [seen["gwi_deadline"] - time.time() > 700 for seen in ran]
    assert left == [False, *[given.get("deadline") == 900] * 2]
    assert [seen.get("mine") for seen in ran[1:]] == [given.get("headers", {}).get("mine")] * 2
    record = store_for(app).get_job(JobRef("acme", "retrying", "key:k"))
    assert record is not None
    assert (record.status, record.attempt) == (JobStatus.SUCCEEDED, 3)


def test_a_retry_can_not_change_its_job(app: Celery, ran: Ran) -> None:
    failed = app.tasks["retrying"].apply(kwargs={**TENANT, "idempotency_key": "other"})
    assert isinstance(failed.result, InvalidCall)
    assert "a retry is the same job" in str(failed.result)


@pytest.mark.parametrize("option", [{"idempotency_key": "k"}, {"deadline": 5}])
def test_a_plain_task_refuses_what_it_can_not_keep(app: Celery, option: dict[str, Any]) -> None:
    plain = app.tasks["plain"]
    for call in (
        lambda: plain.apply_async(**option),
        lambda: plain.s().set(**option).delay(),
        lambda: app.send_task("plain", **option),
    ):
        with pytest.raises(InvalidCall, match="base=ReliableTask"):
            call()


@pytest.mark.parametrize(
    "option",
    [
        {"idempotency_key": ""},
        {"idempotency_key": 5},
        {"idempotency_key": "k" * 200_000},
        {"deadline": "soon"},
        {"deadline": float("nan")},
        {"deadline": True},
    ],
)
def test_a_promise_that_means_nothing_is_refused_at_the_call(
    app: Celery, option: dict[str, Any]
) -> None:
    for call in (
        lambda: app.tasks["t"].apply_async(kwargs=TENANT, **option),
        lambda: app.tasks["t"].apply(kwargs=TENANT, **option),
        lambda: app.send_task("t", kwargs=TENANT, **option),
        lambda: app.send_task("elsewhere", **option),
    ):
        with pytest.raises(InvalidCall, match=r"key|deadline"):
            call()


def test_a_task_of_this_app_that_is_sent_by_name_is_checked_like_any_other(app: Celery) -> None:
    app.finalize()
    with pytest.raises(MissingTenant):
        app.send_task("t")


def test_a_canvas_refuses_what_it_would_give_to_some_of_its_calls_only(
    app: Celery, ran: Ran
) -> None:
    one = app.tasks["t"].s(**TENANT)
    key, deadline = {"idempotency_key": "k"}, {"deadline": 5}
    canvases: list[tuple[Any, list[dict[str, Any]]]] = [
        (lambda: chain(one.clone(), one.clone(), app=app), [key, deadline]),
        (lambda: group([one.clone(), one.clone()], app=app), [key]),
        (lambda: chord([one.clone(), one.clone()], one.clone()), [key]),
        (lambda: group([chain(one.clone(), one.clone(), app=app)], app=app), [deadline]),
    ]
    for make, refused in canvases:
        for option in refused:
            for call in (
                lambda make=make, option=option: make().apply_async(**option),
                lambda make=make, option=option: make().set(**option).apply_async(),
                lambda make=make, option=option: make().apply(**option),
            ):
                with pytest.raises(InvalidCall, match=r"give one to each of its calls"):
                    call()
    assert ran == []


def test_a_group_gives_its_deadline_to_all_of_its_calls(
    app: Celery, ran: Ran, worker: None
) -> None:
    one = app.tasks["t"].s(**TENANT)
    group([one.clone(), one.clone()], app=app).apply_async(deadline=600).get(timeout=PATIENCE)
    assert all("gwi_deadline" in headers for headers in ran)
    assert len(ran) == 2


def test_a_tasks_own_deadline_counts_for_whoever_calls_it(app: Celery) -> None:
    app.finalize()
    message: dict[str, Any] = {}
    with app.connection_for_write() as connection:
        app.send_task("limited", kwargs=TENANT)
        message = connection.default_channel.basic_get("celery").headers
    assert time.time() < message["gwi_deadline"] <= time.time() + 60


def test_a_task_can_not_be_mapped(app: Celery, ran: Ran, worker: None) -> None:
    task = app.tasks["t"]
    for verb in (task.map, task.starmap):
        with pytest.raises(InvalidCall, match=r"group\(t\.s\(x\)"):
            verb([1, 2])
    with pytest.raises(InvalidCall, match="group"):
        task.chunks([(1,), (2,)], 2)
    xmap(task.s(), [1, 2], app=app).apply_async()
    [dead] = eventually(lambda: dead_letters(broker_for(app)))
    assert "send each call" in dead.attributes[DEATH_REASON]
    assert ran == []
    assert isinstance(task.s(), Signature)
