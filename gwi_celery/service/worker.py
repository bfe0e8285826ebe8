"""Bootsteps of a pull worker: its health endpoints, off without a port, and a look at its files.

The endpoints answer from a thread of the worker's main process, so also while a task keeps a pool child's
processor busy, and also where a solo worker's only thread is in a task.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import bootsteps, signals
from celery.worker import state

from gwi_celery import sqlite
from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability.stopping import worker_is_stopping
from gwi_celery.service.grace import pool_processes
from gwi_celery.telemetry import events
from gwi_celery.telemetry.stats import Stats

logger = logging.getLogger(__name__)

#: Seconds between two looks at the embedded files.
_LOOK_EVERY = 1.0


class HealthServer(bootsteps.StartStopStep):
    """Worker bootstep. Its events are listened to before the pool forks: steps are made first."""

    label = "Health"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        from gwi_celery.integration import settings_for

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
            alive=lambda: _pool_lives(worker.pool),
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


class FolderWatch(bootsteps.StartStopStep):
    """Worker bootstep: ends the worker, with exit code 1, once a file it works on has gone.

    Nothing would wake it any more: who publishes from then on makes, or finds, another file.
    """

    label = "Folder"

    def start(self, worker: Any) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(worker,), name="gwi-folder", daemon=True).start()

    def stop(self, worker: Any) -> None:
        self._over.set()

    def terminate(self, worker: Any) -> None:
        self._over.set()

    def _watch(self, worker: Any) -> None:
        while not self._over.wait(_LOOK_EVERY):
            problem = sqlite.displaced()
            if problem is not None:
                logger.critical("this worker stops: %s", problem)
                # What a SIGTERM does, but for the exit code.
                state.should_stop = 1
                signals.worker_shutting_down.send(
                    sender=worker.hostname, sig="SIGTERM", how="Warm", exitcode=1
                )
                return


def _pool_lives(pool: Any) -> bool:
    """Whether a job could run: False once all processes of a prefork pool are gone."""
    processes = pool_processes(pool)
    return not processes or any(process.is_alive() for process in processes)
