"""Whether this worker is alive and can work: /health, /ready, /stats and /metrics.

The same for the push service and for a pull worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gwi_celery.errors import GwiError
from gwi_celery.integration import broker_for, displaced, settings_for, store_for
from gwi_celery.service import local
from gwi_celery.service.answers import Json
from gwi_celery.service.auth import Denied, require_token
from gwi_celery.stores.base import JobRef
from gwi_celery.telemetry.events import emit
from gwi_celery.telemetry.metrics import CONTENT_TYPE, render
from gwi_celery.telemetry.stats import Stats

logger = logging.getLogger(__name__)

#: Seconds within which the broker or the store has to answer.
_PATIENCE = 5.0
#: Seconds for which an answer is reused: probes must not become load.
_FRESH = 1.0

#: A job that doesn't exist; asking for it proves that the store answers.
_NOBODY = JobRef("gwi", "ready", "probe")


@dataclass(frozen=True)
class Answer:
    ok: bool
    latency_ms: float | None
    reason: str | None = None

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"ok": self.ok, "latency_ms": self.latency_ms}
        return shown if self.reason is None else {**shown, "reason": self.reason}


class Probe:
    """Probes one dependency; concurrent callers share one question."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._asking: asyncio.Future[Answer] | None = None
        self._asked_at = 0.0
        self._last: Answer | None = None

    async def answer(self) -> Answer:
        if self._last is not None and time.monotonic() - self._asked_at < _FRESH:
            return self._last
        if self._asking is None:
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._time))
            self._asking.add_done_callback(self._answered)
        done, _ = await asyncio.wait({self._asking}, timeout=_PATIENCE)
        if done and self._last is not None:
            return self._last
        return Answer(False, None, f"no answer in {_PATIENCE:g} s")

    def _answered(self, asking: asyncio.Future[Answer]) -> None:
        self._asking = None
        self._asked_at = time.monotonic()
        if not asking.cancelled():
            self._last = asking.result()

    def _time(self) -> Answer:
        start = time.monotonic()
        try:
            self._ask()
        except GwiError as exc:
            return Answer(False, None, f"{type(exc).__name__}: {exc}")
        except Exception as exc:
            logger.exception("a readiness probe failed")
            return Answer(False, None, type(exc).__name__)
        return Answer(True, round((time.monotonic() - start) * 1000, 3))


class Health:
    """The endpoints.

    Args:
        app: A Celery app that was set up.
        stats: What /stats and /metrics show.
        alive: Whether the executor lives. Called on the event loop, so it must be quick.
        draining: Whether this worker is shutting down.
        mode: ``push`` or ``pull``.
    """

    def __init__(
        self,
        app: Any,
        stats: Stats,
        *,
        alive: Callable[[], bool],
        draining: Callable[[], bool],
        mode: str,
    ) -> None:
        self._app = app
        self._settings = settings_for(app)
        self._stats = stats
        self._alive = alive
        self._draining = draining
        self._mode = mode
        self._probes = {
            "broker": Probe(broker_for(app).connect),
            "store": Probe(lambda: store_for(app).get_job(_NOBODY)),
        }

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/stats", self.stats, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        if self._alive():
            return Json({"status": "ok"})
        return Json({"status": "dead", "reason": "the pool has no process left"}, 503)

    async def ready(self, request: Request) -> Response:
        if self._draining():
            return Json({"status": "unready", "reason": "shutting down"}, 503)
        problem = displaced(self._app)
        if problem is not None:  # a probe would create another file
            return Json({"status": "unready", "reason": problem}, 503)
        answers = dict(
            zip(
                self._probes,
                await asyncio.gather(*(p.answer() for p in self._probes.values())),
                strict=True,
            )
        )
        down = [name for name, answer in answers.items() if not answer.ok]
        body: dict[str, Any] = {"status": "unready" if down else "ready"}
        if down:
            body["reason"] = ", ".join(f"the {name} does not answer" for name in down)
        body.update({name: answer.shown() for name, answer in answers.items()})
        return Json(body, 503 if down else 200)

    async def stats(self, request: Request) -> Response:
        if self._settings.service_token or not self._settings.development:
            require_token(request.headers.get("authorization"), self._settings.service_token)
        else:
            local.check_name(request, self._settings)
        return Json({"mode": self._mode, "draining": self._draining(), **self._stats.snapshot()})

    async def metrics(self, request: Request) -> Response:
        if self._settings.service_token:
            require_token(request.headers.get("authorization"), self._settings.service_token)
        return Response(render(self._stats), media_type=CONTENT_TYPE)


def denied(request: Request, exc: Exception) -> Response:
    """The answer to a call that is refused. The log says who called and why, but nothing of the token."""
    assert isinstance(exc, Denied)
    client = request.client.host if request.client else "unknown"
    logger.warning("%s %s from %s: %s", exc.status, request.scope["path"], client, exc.reason)
    emit("unauthenticated", task_id="")
    headers = {"WWW-Authenticate": "Bearer"} if exc.status == 401 else None
    return Json({"reason": exc.reason}, exc.status, headers)
