"""What a worker that is ended in time exits with; that it ends: tests/acceptance/test_stopping.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from gwi_celery.worker import grace
from tests.apps import fresh_app


@pytest.mark.parametrize(
    ("asked", "worker", "code"),
    [
        (0, None, 0),
        (1, None, 1),
        (None, 1, 1),
        (0, 1, 1),
        (1, 1, 1),
        (None, None, 0),
        (None, "no", 1),
    ],
    ids=str,
)
def test_the_exit_code_is_that_of_what_ended_the_worker(
    asked: int | None, worker: Any, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's, else an unrecoverable error's: nobody would restart a worker that ended well."""
    monkeypatch.setattr(state, "should_stop", asked)
    step = grace.ShutdownGrace(SimpleNamespace(app=fresh_app(), exitcode=worker, pool=None))
    step._sleep = lambda seconds: None
    codes: list[int] = []
    monkeypatch.setattr(grace, "end_now", codes.append)
    step._exit_soon()
    assert codes == [code]
