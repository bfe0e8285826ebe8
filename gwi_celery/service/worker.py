"""A pull worker's health endpoints, off without a port.

They answer from a thread of the worker's main process: even while a task keeps a pool child's CPU busy,
and while a solo worker's main thread is in a task.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.integration import settings_for
from gwi_celery.reliability.stopping import worker_is_stopping
from gwi_celery.telemetry import events
from gwi_celery.telemetry.stats import Stats
from gwi_celery.worker.pools import pool_lives


class HealthServer(bootsteps.StartStopStep):
    """Worker bootstep. It listens to events before the pool forks, as all steps are made first."""

    label = "Health"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings: Settings = settings_for(worker.app)
        self._server: Any = None
        self.enabled = bool(self._settings.port)
        if self.enabled:
            self._stats = Stats()
            events.listen(self._stats)

    def include_if(self, worker: Any) -> bool:
        return self.enabled

    def start(self, worker: Any) -> None:
        try:
            from gwi_celery.service.app import create_health_app
            from gwi_celery.service.server import BackgroundServer
        except ImportError as exc:
            raise ConfigurationError(
                f"the port is set to {self._settings.port}, and the health endpoints on it need "
                f"more ({exc}): pip install 'gwi-celery[http]', or unset PORT"
            ) from exc
        application = create_health_app(
            worker.app,
            self._stats,
            alive=lambda: pool_lives(worker.pool),
            draining=worker_is_stopping,
        )
        self._server = BackgroundServer(
            application, self._settings.effective_host, self._settings.port
        )
        self._server.start()

    def stop(self, worker: Any) -> None:
        if self._server is not None:
            self._server.stop()

    def terminate(self, worker: Any) -> None:
        self.stop(worker)
