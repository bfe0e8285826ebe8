"""Progress inside a loop: kept, never moved back, and gone on with in the next attempt."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from gwi_celery import ReliableTask
from gwi_celery.errors import CursorWentBack

CALL = {"tenant_id": "acme", "run_id": "r1"}

pytestmark = pytest.mark.usefixtures("eager")


def test_a_cursor_is_kept_and_never_goes_back(app: Celery) -> None:
    values: list[int] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None:
        with self.cursor("c", start=0, save_every=3600) as cursor:
            values.append(cursor.value)
            cursor.advance(cursor.value + 5)
            if len(values) == 1:
                raise RuntimeError("half-way")
            cursor.advance(1)

    with pytest.raises(RuntimeError):
        t.delay(**CALL).get()
    with pytest.raises(CursorWentBack, match="at 10 and can't go back to 1"):
        t.delay(**CALL).get()
    assert values == [0, 5]


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
