"""The decorator that keeps the types; tests/typing/api.py shows what type checkers make of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery, Task

from gwi_celery import ReliableTask, reliable_task, setup
from gwi_celery.errors import ConfigurationError


class Audited(ReliableTask):
    abstract = True


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("typed", set_as_current=False)
    setup(app, broker_url="embedded://:memory:/typed", store_backend="memory")
    yield app
    app.close()


def test_it_makes_a_reliable_task_of_the_base_given(app: Celery) -> None:
    @reliable_task(app, bind=True, name="count", base=Audited, max_retries=7, shared=False)
    def count(self: ReliableTask, *, tenant_id: str) -> int:
        return self.step("length", len, tenant_id)

    assert isinstance(count, Audited)
    assert (app.tasks["count"].max_retries, count(tenant_id="acme")) == (7, 4)
    with pytest.raises(TypeError):
        count.delay(tenant_id="acme", other=1)  # type: ignore[call-arg]
    assert count.delay(tenant_id="acme").id


def test_without_an_app_it_is_shared(app: Celery) -> None:
    @reliable_task(name="shared_count")
    def count(tenant_id: str) -> int:
        return len(tenant_id)

    assert isinstance(app.tasks["shared_count"], ReliableTask)


def test_without_parentheses_it_says_how_it_is_written() -> None:
    with pytest.raises(ConfigurationError, match=r"write @reliable_task\(app\)"):

        @reliable_task
        def count(tenant_id: str) -> int:
            return len(tenant_id)


def test_another_base_is_refused(app: Celery) -> None:
    with pytest.raises(ConfigurationError, match="not a subclass of ReliableTask"):
        reliable_task(app, base=Task)
