"""``celery control`` can't give a task of a running worker an option that a starting one would refuse."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.control import Panel

from gwi_celery import setup
from gwi_celery.worker import controls


def nothing() -> None: ...


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    controls.install()
    app = Celery("controls", set_as_current=False)
    setup(app, broker_url="embedded://:memory:/controls", store_backend="memory")
    app.task(nothing, name="t", rate_limit="1/m", time_limit=9, shared=False)
    app.finalize()
    consumer = SimpleNamespace(reset_rate_limits=lambda: None)
    yield SimpleNamespace(app=app, consumer=consumer)
    app.close()


@pytest.mark.parametrize(
    ("command", "given", "why"),
    [
        *(
            ("rate_limit", {"rate_limit": wrong}, "is not a rate such as '10/s'")
            for wrong in ("abc", "10/x", "-5/m", "nan", "inf", -1, [1])
        ),
        ("time_limit", {"soft": 1.0, "hard": -5.0}, "time_limit=-5.0 is not"),
        ("time_limit", {"soft": float("nan")}, "soft_time_limit=nan is not"),
        ("time_limit", {"soft": 10.0, "hard": 5.0}, "make it the smaller one"),
    ],
)
def test_what_can_t_work_changes_nothing(
    state: Any, command: str, given: dict[str, Any], why: str
) -> None:
    answer = Panel.data[command](state, task_name="t", **given)
    assert why in answer["error"]
    task = state.app.tasks["t"]
    assert (task.rate_limit, task.time_limit, task.soft_time_limit) == ("1/m", 9, None)


def test_what_works_is_set(state: Any) -> None:
    assert "ok" in Panel.data["rate_limit"](state, task_name="t", rate_limit="5/s")
    assert "ok" in Panel.data["time_limit"](state, task_name="t", soft=3.0, hard=5.0)
    task = state.app.tasks["t"]
    assert (task.rate_limit, task.time_limit, task.soft_time_limit) == ("5/s", 5.0, 3.0)
    assert Panel.data["rate_limit"](state, task_name="none", rate_limit="") == {
        "error": "unknown task"
    }
