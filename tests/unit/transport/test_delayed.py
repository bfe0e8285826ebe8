"""A message that is delivered before its time, without being forged."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from gwi_celery import ReliableTask, broker_for, setup
from gwi_celery.authority import SIGNATURE
from gwi_celery.integration import integration
from gwi_celery.queues.settling import _as_delivery
from gwi_celery.stores.base import JobRef
from gwi_celery.transport.delayed import due_now, job_of


@pytest.fixture
def app(tmp_path: Path):
    app = Celery(f"unit-{tmp_path.name}", set_as_current=False)
    setup(app, folder=str(tmp_path / "gwi"), signing_keys={"k1": "s" * 32})

    @app.task(base=ReliableTask, bind=True, name="shop.invoice", shared=False)
    def invoice(self, *, tenant_id, run_id): ...

    yield app
    app.close()


def test_it_is_signed_anew_only_if_it_was_signed(app):
    authority = integration(app).authority
    app.tasks["shop.invoice"].apply_async(kwargs={"tenant_id": "t", "run_id": "r"}, countdown=900)
    [waiting] = map(_as_delivery, broker_for(app).browse("celery"))
    assert b'"eta": "20' in waiting.data
    now = due_now(waiting, authority)
    assert b'"eta": null' in now.data
    assert authority.admit(now)
    assert due_now(now, authority) is now, "there is nothing to take out"
    for attributes in ({}, {**waiting.attributes, SIGNATURE: "k1:forged"}):
        forged = type(waiting)(**{**vars(waiting), "attributes": attributes})
        assert due_now(forged, authority) is forged
    for data in (b"no JSON", b"[1]", b'{"headers": 1}', b"[" * 10_000):
        other = type(waiting)(**{**vars(waiting), "data": data, "attributes": {}})
        assert due_now(other, None) is other


def test_whose_job_it_asks_for(app):
    app.tasks["shop.invoice"].apply_async(kwargs={"tenant_id": "t", "run_id": "r"}, countdown=900)
    app.send_task("shop.other", countdown=900)
    with app.connection_for_write() as connection, connection.channel() as channel:
        found = [job_of(app, channel, _as_delivery(m)) for m in broker_for(app).browse("celery")]
    assert found == [JobRef("t", "shop.invoice", "run:r"), None]
