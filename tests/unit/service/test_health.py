"""Who sees what of a worker: health everybody, jobs and tenants not."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

import httpx
import pytest
from celery import Celery

from gwi_celery import setup
from gwi_celery.service.app import create_health_app
from gwi_celery.telemetry.events import Event
from gwi_celery.telemetry.stats import Stats


class Client:
    """Calls the endpoints of a pull worker, without a socket in between."""

    def __init__(self, stats: Stats | None = None, **settings: Any) -> None:
        app = Celery(f"health-{uuid.uuid4().hex}", set_as_current=False)
        url = f"embedded://:memory:/{uuid.uuid4().hex}"
        setup(app, broker_url=url, store_url=url, **settings)
        self._application = create_health_app(
            app, stats or Stats(), alive=lambda: True, draining=lambda: False
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self._application)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1"
            ) as client:
                return await client.get(path, headers=headers)

        return asyncio.run(call())


def test_stats_are_closed_unless_a_token_is_set_or_in_development() -> None:
    token = "Bearer s3cret"
    production = Client()
    assert "GWI_SERVICE_TOKEN" in production.get("/stats").json()["reason"]
    for sent in (token, "Bearer ", ""):
        assert production.get("/stats", Authorization=sent).status_code == 403
    assert production.get("/metrics").status_code == 200
    assert production.get("/health").status_code == 200
    closed = Client(service_token="s3cret")
    for path in ("/stats", "/metrics"):
        assert closed.get(path).status_code == 401
        assert closed.get(path, Authorization=token).status_code == 200
    development = Client(environment="development")
    assert development.get("/stats").json()["mode"] == "pull"
    assert development.get("/stats", Host="evil.example").status_code == 403, "a rebound name"


@pytest.mark.parametrize("text", ["\ud800", "a\nb", "\x00", "é\u2028"])
def test_stats_show_any_id(text: str) -> None:
    stats = Stats()
    stats(Event("started", os.getpid(), text, time.time(), {"task": text}))
    stats(Event("claimed", os.getpid(), text, time.time(), {"tenant": text, "run": text}))
    (job,) = Client(stats, environment="development").get("/stats").json()["current"]
    assert (job["tenant"], job["run"], job["task_id"]) == (text, text, text)


def test_no_other_path_leads_there() -> None:
    development = Client(environment="development")
    for path in ("/stats%0a", "/stats%0D", "/stats/", "/metrics%0a", "//stats"):
        assert development.get(f"http://127.0.0.1{path}").status_code == 404, path
