"""Celery's other ways to call a task: a custom ``__call__``, and Django's methods.

That none is mapped: test_sending.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from celery import Celery

from gwi_celery import ReliableTask, store_for
from gwi_celery.stores.base import JobRef
from tests import zygote

CALL = {"tenant_id": "acme", "run_id": "r1"}


# --- a __call__ of one's own ----------------------------------------------------------------------


class ByRun(ReliableTask):
    abstract = True
    seen: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("around")
        return self.run(*args, **kwargs)


class BySuper(ReliableTask):
    abstract = True
    seen: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("around")
        return super().__call__(*args, **kwargs)


class Twice(BySuper):
    abstract = True
    seen: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("outer")
        return super().__call__(*args, **kwargs)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("base", [ByRun, BySuper, Twice])
def test_a_custom_call_runs_inside_the_attempt(app: Celery, base: Any) -> None:
    base.seen.clear()

    @app.task(shared=False, base=base, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str, depth: int = 0) -> Any:
        made = self.step("s", lambda: self.seen.append("step") or 5)
        if depth:
            return [made, self.fence]
        return [made, self.fence > 0, *self(tenant_id=tenant_id, run_id=run_id, depth=1)]

    around = ["outer", "around"] if base is Twice else ["around"]
    assert t.apply(kwargs=CALL).get() == [5, True, 5, 0]
    assert base.seen == [*around, "step", *around, "step"]
    assert t.apply(kwargs=CALL).get() == [5, True, 5, 0], "a duplicate is answered"
    assert len(base.seen) == 2 * len(around) + 2
    assert [c.name for c in store_for(app).get_checkpoints(JobRef("acme", "t", "run:r1"))] == ["s"]
    base.seen.clear()
    assert t(**CALL, depth=1) == [5, 0], "a plain call stays one"
    assert base.seen == [*around, "step"]


# --- Django ---------------------------------------------------------------------------------------


DJANGO = """
import os, sys, types
from unittest.mock import Mock
transaction = types.ModuleType("django.db.transaction")
calls = []
transaction.on_commit = calls.append
db = types.ModuleType("django.db"); db.transaction = transaction
django = types.ModuleType("django"); django.db = db
sys.modules.update({"django": django, "django.db": db, "django.db.transaction": transaction})
from celery import Celery
from gwi_celery import ReliableTask, setup
app = Celery("shop", set_as_current=False)
app.task_cls = "celery.contrib.django.task:DjangoTask"  # as Celery's Django fixup does
setup(app, broker_url="embedded://:memory:/x", store_url="embedded://:memory:/x")
app.conf.task_always_eager = True
ran = []

@app.task(base=ReliableTask, name="t")
def t(*, tenant_id):
    ran.append(tenant_id)

t.delay_on_commit(tenant_id="a")
t.apply_async_on_commit(kwargs={"tenant_id": "b"}, idempotency_key="k")
assert ran == []
for call in calls:
    call()
assert ran == ["a", "b"], ran
"""


def test_under_a_django_app_a_task_has_celerys_verbs_for_transactions(tmp_path: Path) -> None:
    """In a process of its own, with as much of Django as Celery's task needs."""
    done = zygote.run(DJANGO, folder=tmp_path)
    assert done.returncode == 0, done.stdout


def test_elsewhere_it_has_none(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str) -> None: ...

    assert not hasattr(t, "delay_on_commit")
