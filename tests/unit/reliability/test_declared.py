"""A task's option that Celery would stumble over late is refused at once, or by a worker that starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, _state

from gwi_celery import ReliableTask, setup
from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability import declared

WRONG: list[dict[str, Any]] = [
    {"rate_limit": "abc"},
    {"rate_limit": "5/x"},
    {"rate_limit": -3},
    {"rate_limit": float("nan")},
    {"rate_limit": 10**309},
    {"rate_limit": "1e400/s"},
    {"rate_limit": [1]},
    {"time_limit": "10"},
    {"time_limit": -1},
    {"soft_time_limit": True},
    {"time_limit": 5, "soft_time_limit": 10},
    {"max_retries": "3"},
    {"max_retries": -1},
    {"default_retry_delay": "soon"},
    {"default_retry_delay": -3},
    {"retry_backoff": "x"},
    {"retry_backoff": float("inf")},
    {"retry_backoff_max": "x"},
    {"retry_kwargs": 3},
    {"autoretry_for": ValueError},
    {"autoretry_for": "ValueError"},
    {"dont_autoretry_for": (3,)},
    {"throws": "ValueError"},
    {"priority": "high"},
    {"ignore_result": "x"},
    {"queue": 5},
    {"queue": ""},
    {"routing_key": 5},
    {"expires": "soon"},
    {"compression": "nope"},
]
RIGHT: list[dict[str, Any]] = [
    {"rate_limit": "10/m"},
    {"rate_limit": 2.5},
    {"rate_limit": 0},
    {"time_limit": 10, "soft_time_limit": 10},
    {"max_retries": None},
    {"default_retry_delay": 0.5},
    {"retry_backoff": True, "retry_backoff_max": 60, "retry_kwargs": {"max_retries": 2}},
    {"autoretry_for": [OSError], "throws": KeyError},
    {"expires": 60, "compression": "gzip", "priority": 3, "queue": "a/b c"},
]


def nothing() -> None: ...


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = Celery("declared", set_as_current=False)
    setup(app, broker_url="embedded://:memory:/declared", store_backend="memory")
    yield app
    app.close()


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_what_cannot_work_is_refused_where_it_stands(app: Celery, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        app._task_from_fun(nothing, name="wrong", base=ReliableTask, **options)
    assert "wrong" not in app._tasks, "the next use is refused, too"


def test_what_works_is_taken(app: Celery) -> None:
    for n, options in enumerate(RIGHT):
        app._task_from_fun(nothing, name=f"right{n}", base=ReliableTask, **options)
    declared.check_all(app)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task_annotations": {"plain": {"rate_limit": "abc"}}}, "plain: rate_limit='abc'"),
        ({"task_default_rate_limit": "abc"}, "rate_limit='abc'"),
        ({"task_time_limit": "10"}, "app.conf.task_time_limit is '10'"),
        (
            {"task_annotations": {"plain": {"Strategy": "nope.x"}}},
            "plain: Strategy='nope.x' can't be imported (ModuleNotFoundError",
        ),
        (
            {"task_annotations": {"plain": {"Request": "os:nope"}}},
            "plain: Request='os:nope' can't be imported (AttributeError",
        ),
        ({"task_annotations": {"plain": {"Request": "os:getpid"}}}, "is not a class"),
    ],
)
def test_a_worker_and_the_push_service_refuse_settings_and_plain_tasks(
    settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gwi_celery.service.app import create_app

    # Without tasks that other tests share with every app: those are refused when they are bound.
    builtin = {f for f in _state._on_app_finalizers if f.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", builtin)
    app = Celery("settings", set_as_current=False)
    setup(app, broker_url="embedded://:memory:/settings", store_backend="memory")
    app.conf.update(settings)
    app.task(nothing, name="plain", shared=False)
    app.finalize()
    with pytest.raises(ConfigurationError) as refused:
        app.WorkController(pool="solo")
    assert said in str(refused.value)
    assert refused.value.exit_code == 2
    with pytest.raises(ConfigurationError):
        create_app(app)
    app.close()


@pytest.mark.parametrize("serializer", ["nope", "pickle"])
def test_a_plain_task_has_a_serializer_that_its_workers_accept(
    app: Celery, serializer: str
) -> None:
    app.task(nothing, name="odd", serializer=serializer, shared=False)
    with pytest.raises(ConfigurationError, match="leave it out, for JSON"):
        declared.check_all(app)
    del app.tasks["odd"]
