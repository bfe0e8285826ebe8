"""docs/operating.md: what it tells operators to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from gwi_celery import ReliableTask, blobs, store_for
from gwi_celery.stores.base import JobRef
from tests.apps import fresh_app
from tests.workers import ROOT


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app()
    app.conf.task_always_eager = True
    yield app
    app.close()


def test_values_are_put_by_their_version(app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    [page] = [
        code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "put_" in code
    ]
    store = store_for(app)

    def as_on_the_page(code: str = page) -> None:
        exec(code, {"store": store, "JobRef": JobRef})

    @app.task(shared=False, base=ReliableTask, bind=True, name="shop.invoice", max_retries=1)
    def invoice(self: Any, *, tenant_id: str, run_id: str) -> Any:
        if self.attempt == 1:
            as_on_the_page()
            as_on_the_page()
            # Somebody else is quicker, between the reading and the put.
            job = JobRef("acme", "shop.invoice", "run:r1")
            blob = blobs.dump([1], what="skip", limit=100)
            quicker = "store.put_value(job, 'skip', quicker, expected_version=2)\ntry:"
            exec(
                page.replace("try:", quicker),
                {"store": store, "JobRef": JobRef, "job": job, "quicker": blob},
            )
            raise self.retry(countdown=0)
        return self.restore("skip")

    assert invoice.apply(kwargs={"tenant_id": "acme", "run_id": "r1"}).get() == [1]
    assert capsys.readouterr().out == "2 3\n"
