"""The service's lifespan."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import setup
from gwi_celery.service.app import create_app
from gwi_celery.service.execute import Executor
from tests.service.tokens import ACCOUNT, AUDIENCE, Issuer


def test_a_service_that_can_not_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    setup(
        app,
        broker_url=f"embedded://:memory:/{uuid4().hex}",
        push_audience=AUDIENCE,
        push_service_account=ACCOUNT,
    )
    asked = threading.Event()

    def certificates() -> dict[str, str]:
        asked.set()
        return Issuer().certificates

    def no_pool(self: Any) -> None:
        assert asked.wait(60)
        raise RuntimeError("no room for a pool")

    monkeypatch.setattr(Executor, "_start", no_pool)
    service = create_app(app, fetch_certs=certificates)

    async def serve() -> None:
        async with service.router.lifespan_context(service):
            raise AssertionError("it started")

    with pytest.raises(RuntimeError, match="no room"):
        asyncio.run(serve())
    for thread in threading.enumerate():
        if thread.name == "gwi-keys":
            thread.join(60)
            assert not thread.is_alive()
    app.close()
