"""Eager calls keep their jobs in the process's memory: no earlier run of the tests answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from gwi_celery import ReliableTask, setup, store_for
from gwi_celery.integration import forget_eager_jobs
from gwi_celery.stores.base import JobRef
from tests import zygote

CALL = {"tenant_id": "acme", "run_id": "r1"}
JOB = JobRef("acme", "t", "run:r1")


def app_in(folder: Path, ran: list[int], **settings: str) -> Celery:
    app = Celery("eager", set_as_current=False)
    setup(app, folder=str(folder), **settings)

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> int:
        ran.append(1)
        return len(ran)

    return app


@pytest.mark.parametrize("always", [True, False])
def test_another_processes_job_answers_no_eager_call(tmp_path: Path, always: bool) -> None:
    script = (
        "from celery import Celery\n"
        "from gwi_celery import ReliableTask, setup\n"
        "app = Celery('eager')\n"
        "setup(app)\n"
        f"app.conf.task_always_eager = {always}\n"
        "@app.task(base=ReliableTask)\n"
        "def t(*, tenant_id, run_id):\n"
        "    print('ran')\n"
        "for _ in range(2):\n"
        "    t.apply(kwargs=dict(tenant_id='acme', run_id='r1')).get()\n"
    )
    for _ in range(2):
        done = zygote.run(script, folder=tmp_path)
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines().count("ran") == 1, "once in each process"


def test_a_store_that_is_named_keeps_them(tmp_path: Path) -> None:
    ran: list[int] = []
    for _ in range(2):
        app = app_in(tmp_path, ran, store_url=f"embedded://{tmp_path}")
        assert app.tasks["t"].apply(kwargs=CALL).get() == 1
        assert store_for(app).get_job(JOB) is not None
        store_for(app).close()
        app.close()
    assert ran == [1]


def test_a_fresh_memory_for_each_test(tmp_path: Path) -> None:
    ran: list[int] = []
    app = app_in(tmp_path, ran)
    app.conf.task_always_eager = True
    assert [app.tasks["t"].delay(**CALL).get() for _ in range(2)] == [1, 1]
    assert store_for(app).get_job(JOB) is not None
    forget_eager_jobs()
    assert store_for(app).get_job(JOB) is None
    assert app.tasks["t"].delay(**CALL).get() == 2
    assert not (tmp_path / "store.sqlite3").exists()


USERS_TEST = """
import pytest
from celery import Celery
from gwi_celery import ReliableTask, setup

pytest_plugins = ["gwi_celery.testing.eager"]
app = Celery("eager", set_as_current=False)
setup(app)
app.conf.task_always_eager = True
ran = []

@app.task(shared=False, base=ReliableTask)
def t(*, tenant_id, run_id):
    ran.append(1)

@pytest.mark.parametrize("n", [1, 2])
def test_once_in_each(n):
    t.delay(tenant_id="acme", run_id="r1")
    t.delay(tenant_id="acme", run_id="r1")
    assert len(ran) == n
"""


def test_the_fixture_gives_each_test_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    done = zygote.run_pytest(tmp_path)
    assert "2 passed" in done.stdout, done.stdout
