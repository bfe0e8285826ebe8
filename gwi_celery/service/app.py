"""The web application: a few lines per path."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gwi_celery import required
from gwi_celery.brokers.base import Delivery
from gwi_celery.config import Settings
from gwi_celery.errors import MalformedMessage
from gwi_celery.integration import settings_for
from gwi_celery.reliability import declared
from gwi_celery.reliability.stopping import lower_flag
from gwi_celery.service import local, push
from gwi_celery.service.admission import Admission, Refused
from gwi_celery.service.answers import Json
from gwi_celery.service.auth import Denied, push_auth, require_token, warn_if_open
from gwi_celery.service.early import Early
from gwi_celery.service.execute import Executor
from gwi_celery.service.health import Health, denied
from gwi_celery.service.keys import Fetch
from gwi_celery.service.limits import Budget, HeadLimit
from gwi_celery.service.shutdown import Shutdown
from gwi_celery.telemetry import events
from gwi_celery.telemetry.stats import Stats
from gwi_celery.transport import budget, envelope
from gwi_celery.transport.settlement import Settlement
from gwi_celery.upkeep import Cleaner

logger = logging.getLogger(__name__)

#: Request bodies that may be in memory at a time, in units of the largest.
_BODIES = 8
#: Deliveries of a message after which it is republished rather than refused: Pub/Sub counts a refusal
#: as an attempt, and dead-letters a message after 100 at most.
_REFUSALS = 50
#: Share of the push deadline for which a request may wait until its message is due.
_HOLD_AT_MOST = 0.5
#: Share of the push deadline after which a job is handed back, and its request answered.
_HAND_BACK_AT, _ANSWER_AT = 0.9, 0.98


def create_app(
    app: Any, settings: Settings | None = None, *, fetch_certs: Fetch | None = None
) -> Starlette:
    """The push service of a Celery app, as an ASGI application.

    Its pool starts and ends with the application's lifespan.

    Args:
        app: A Celery app that was set up.
        settings: By default those of ``setup(app)``.
        fetch_certs: Returns the certificates (key id -> PEM) that tokens are checked with; by
            default Google's.

    Raises ConfigurationError if tokens must be checked and no setting says whose, if one of Celery's
    settings was changed after ``setup()`` to a value that jobs can't have, or if a task's option can't
    work.
    """
    required.check(app.conf)  # it may have been changed since setup()
    declared.check_all(app)
    service = Service(app, settings or settings_for(app), fetch_certs)
    return _application(service.routes(), service.lifespan)


def create_health_app(
    app: Any, stats: Stats, *, alive: Callable[[], bool], draining: Callable[[], bool]
) -> Starlette:
    """The endpoints of a pull worker: /health, /ready, /stats and /metrics."""
    health = Health(app, stats, alive=alive, draining=draining, mode="pull")
    return _application(health.routes())


def _application(routes: list[Route], lifespan: Any = None) -> Starlette:
    application = Starlette(
        routes=routes,
        middleware=[Middleware(HeadLimit)],
        lifespan=lifespan,
        exception_handlers={
            Denied: denied,
            Refused: _refused,
            HTTPException: _http_error,
            Exception: _bug,
        },
    )
    # A redirect would lead to whatever host the caller names.
    application.router.redirect_slashes = False
    return application


class Service:
    def __init__(self, app: Any, settings: Settings, fetch_certs: Fetch | None) -> None:
        self._app = app
        self._settings = settings
        self._queue = settings.push_queue or app.conf.task_default_queue
        self._auth = push_auth(settings, fetch_certs)
        self._stats = Stats()
        self._executor = Executor(app, pool=settings.push_pool, size=settings.push_concurrency)
        self._admission = Admission(self._executor, wait=settings.push_wait)
        self._early = Early(self._executor, self._admission, self._queue)
        self._budget = Budget(_BODIES * settings.max_body_bytes)
        self._shutdown = Shutdown(self._admission, self._executor, settings.shutdown_grace)
        self._cleaner = Cleaner(app, settings.cleanup_interval)
        self._health = Health(
            app,
            self._stats,
            alive=self._executor.alive,
            draining=lambda: self._admission.draining,
            mode="push",
        )

    def routes(self) -> list[Route]:
        routes = [*self._health.routes(), Route("/push", self.push, methods=["POST"])]
        if self._settings.development:
            routes.append(Route("/process", self.process, methods=["POST"]))
        return routes

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        lower_flag()
        warn_if_open(self._settings)
        broker = self._app.connection_for_write().as_uri()
        logger.info("messages: %s, jobs: %s", broker, self._settings.effective_store_url)
        events.listen(self._stats)
        try:
            await asyncio.gather(asyncio.to_thread(self._executor.start), self._know_keys())
            self._cleaner.start()
            self._early.start()
            with self._shutdown.on_signals():
                yield
        finally:
            if self._auth is not None:
                self._auth.close()
            await self._early.stop()  # while it can publish
            await asyncio.gather(self._shutdown.finish(), asyncio.to_thread(self._cleaner.stop))
            events.ignore(self._stats)

    async def _know_keys(self) -> None:
        if self._auth is not None and self._auth.keys is not None:
            await asyncio.to_thread(self._auth.keys.wait)

    # --- endpoints ----------------------------------------------------------------------------

    async def push(self, request: Request) -> Response:
        received_at = time.monotonic()
        if self._auth is not None:
            self._auth.verify(request.headers.get("authorization"))
        elif self._settings.development:
            local.check(request, self._settings)
        try:
            settlement = await self._take(request, received_at)
        except push.NotAMessage as exc:
            settlement = await self._keep(exc.delivery, f"not a Celery message: {exc}")
        if settlement is Settlement.NACKED:
            raise Refused(settlement.push_status, "it could not be run now")
        return Response(status_code=settlement.push_status)

    async def process(self, request: Request) -> Response:
        """Run a job by hand: the same as a push of it, with an answer for people."""
        if not local.is_loopback(request) or "authorization" in request.headers:
            require_token(request.headers.get("authorization"), self._settings.service_token)
        else:
            local.check(request, self._settings)
        seen: list[Delivery] = []

        def check(delivery: Delivery) -> None:
            limit = self._settings.max_decoded_bytes or budget.automatic()
            budget.check(delivery.data, limit, "it")
            envelope.decode(delivery)
            seen.append(delivery)

        try:
            settlement = await self._take(request, time.monotonic(), check=check)
        except MalformedMessage as exc:
            raise HTTPException(422, str(exc)) from exc
        answer = {"message": settlement.text}
        if settlement is Settlement.ACKED:
            return Json(answer)
        if settlement is Settlement.DEAD_LETTERED:
            return Json({**answer, "reason": self._executor.why_dead(seen[0])}, 422)
        return Json({**answer, "reason": "it could not be run now: send it again"}, 503)

    async def _take(
        self,
        request: Request,
        received_at: float,
        check: Callable[[Delivery], object] = lambda delivery: None,
    ) -> Settlement:
        """Read and run a message. Raises NotAMessage, Refused, HTTPException, and what ``check`` does."""
        settings = self._settings
        if self._admission.draining:
            raise Refused(503, "this instance is shutting down", retry_after=1)
        async with self._budget.body(
            request, limit=settings.max_body_bytes, timeout=settings.body_timeout
        ) as body:
            pushed = await asyncio.to_thread(
                push.parse,
                body.data,
                dict(request.headers),
                queue=self._queue,
                max_depth=settings.max_json_depth,
                max_decoded=settings.max_decoded_bytes or budget.automatic(),
            )
            body.release(but=len(pushed.delivery.data))
            await asyncio.to_thread(check, pushed.delivery)
            wait = pushed.not_before - time.time()
            fresh = pushed.delivery.deliveries < _REFUSALS
            if (
                wait > 0
                and body.is_large
                and fresh
                and not self._early.holds_until(pushed.not_before)
            ):
                # Not kept in memory meanwhile: Pub/Sub has it, and redelivers it.
                del pushed
                body.release()
                await self._admission.hold(min(wait, _HOLD_AT_MOST * settings.push_deadline))
                return Settlement.NACKED
            settlement = await self._early.until_due(pushed, _HOLD_AT_MOST * settings.push_deadline)
            if settlement is not None:
                return settlement
            try:
                return await self._admission.run(
                    pushed.delivery,
                    hand_back_at=received_at + _HAND_BACK_AT * settings.push_deadline,
                    answer_by=received_at + _ANSWER_AT * settings.push_deadline,
                )
            except Refused as exc:
                if exc.status != 429 or pushed.delivery.deliveries < _REFUSALS:
                    raise
                # It was not attempted: the deliveries of a copy are counted from 1.
                return await asyncio.to_thread(
                    self._executor.postpone, pushed.delivery, float(exc.retry_after or 1)
                )

    async def _keep(self, delivery: Delivery, reason: str) -> Settlement:
        logger.error("pushed message %s is %s", delivery.message_id, reason)
        return await asyncio.to_thread(self._executor.dead_letter, delivery, reason)


# --- answers to what went wrong: a reason, never a trace or a payload ------------------------------


def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refused)
    if exc.status == 429:
        events.emit("busy", task_id="")
    headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
    return Json({"reason": exc.reason}, exc.status, headers)


def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return Json({"reason": exc.detail}, exc.status_code, exc.headers)


def _bug(request: Request, exc: Exception) -> Response:
    return Json({"reason": "an error of this service; its log says more"}, 500)
