"""``gwi dlq redrive`` from where an operator says: the jobs run in a worker, on each broker of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, states

from gwi_celery import ReliableTask, broker_for, setup
from gwi_celery.cli.frame import Exit
from tests.cli.conftest import Gwi
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import eventually


class Shop(Gwi):
    """Jobs of three steps, of which the last one fails until it is mended."""

    mended = False

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.steps: list[str] = []

        @app.task(shared=False, base=ReliableTask, bind=True, name="shop.pay")
        def pay(self_: Any, *, tenant_id: str, run_id: str) -> str:
            for name in ("look up", "pay"):
                self_.step(name, self.steps.append, name)
            if not self.mended:
                raise ValueError("no money")
            return run_id

    def fail(self, run: str) -> Any:
        self.mended = False
        sent = self.app.tasks["shop.pay"].delay(tenant_id="acme", run_id=run)
        eventually(lambda: sent.state == states.FAILURE)
        eventually(lambda: [r for r in self.json("dlq", "list") if r["run_id"] == run])
        self.mended = True
        self.steps.clear()
        return sent


@pytest.fixture(scope="module", params=["embedded", "pubsub"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Shop]:
    folder: Path = tmp_path_factory.mktemp("shop")
    settings = {"folder": str(folder), "lease_seconds": 10.0}
    if request.param == "pubsub":
        emulator = request.getfixturevalue("pubsub_emulator")
        settings["broker_url"] = f"pubsub://{emulator.endpoint}/p-{uuid4().hex[:20]}"
        settings["store_url"] = f"embedded://{folder}"
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    setup(app, **settings)
    shop = Shop(app)
    with worker_in_thread(app):
        yield shop
    broker_for(app).close()
    app.close()


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("options", "run_again"),
    [([], []), (["--from-step", "pay"], ["pay"]), (["--from-start"], ["look up", "pay"])],
)
def test_a_job_goes_on_from_where_it_is_told_to(shop: Shop, options, run_again) -> None:
    run = uuid4().hex
    sent = shop.fail(run)
    assert shop.json("dlq", "redrive", sent.id, *options, "--yes") == {"redriven": 1}
    assert eventually(lambda: shop.json("jobs", "show", sent.id)["status"] == "succeeded")
    assert shop.steps == run_again
    # Its record has ended before its result is stored: until then that is still the failure.
    eventually(lambda: shop.app.AsyncResult(sent.id).state == states.SUCCESS)
    assert shop.app.AsyncResult(sent.id).get(timeout=PATIENCE) == run


@pytest.mark.emulator
def test_nothing_is_redriven_where_one_of_them_can_t_go_on_from_there(shop: Shop) -> None:
    sent = [shop.fail(uuid4().hex) for _ in range(2)]
    ids = [each.id for each in sent]
    shop("dlq", "redrive", *ids, "--from-step", "pya", "--yes", code=Exit.USAGE)
    assert "its recorded steps are 'look up', 'pay'" in shop.err
    shop("dlq", "redrive", *ids, "--from-step", "pay", "--from-start", "--yes", code=Exit.USAGE)
    assert len([row for row in shop.json("dlq", "list") if row["task_id"] in ids]) == 2
    assert shop.json("dlq", "purge", *ids, "--yes") == {"purged": 2}
    shop.mended = False
    shop("dlq", "redrive", *ids, "--yes", code=Exit.NOTHING)
