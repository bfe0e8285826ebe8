"""The health endpoints of a pull worker: a bootstep of Celery's worker, off without a port.

They answer from a thread of the worker's main process, so also while a task keeps a pool child's
processor busy, and also where a solo worker's only thread is in a task.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from typing import Any

from celery import bootsteps, signals

from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability.stopping import worker_is_stopping
from gwi_celery.telemetry import events
from gwi_celery.telemetry.stats import Stats

logger = logging.getLogger(__name__)


class HealthServer(bootsteps.StartStopStep):
    """Worker bootstep. Its events are listened to before the pool forks: steps are made first."""

    label = "Health"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        from gwi_celery.app import settings_for

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


class ShutdownGrace(bootsteps.StartStopStep):
    """Worker bootstep: a worker that is told to stop ends in time, with or without its jobs.

    Celery waits for a job for ever, and Cloud Run for ten seconds. A job that came to no boundary by
    then is killed here, so that the rest of the worker ends as it should and hands back what it holds.
    """

    label = "Grace"

    def include_if(self, worker: Any) -> bool:
        from gwi_celery.app import settings_for

        self._grace: float = settings_for(worker.app).worker_grace
        return self._grace > 0

    def start(self, worker: Any) -> None:
        self._worker = worker
        signals.worker_shutting_down.connect(self._begin)

    def _begin(self, **kwargs: Any) -> None:
        timer = threading.Timer(self._grace, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        processes = _processes(self._worker.pool)
        logger.warning("the grace of %g s is over: what still runs is killed", self._grace)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if not processes:
            os._exit(0)  # the job is in this process: leases of message and lock run out


def _processes(pool: Any) -> list[Any]:
    """A pool's children; none where it has threads."""
    return list(getattr(getattr(pool, "_pool", None), "_pool", ()))


def _pool_lives(pool: Any) -> bool:
    """Whether a job could run: False once all processes of a prefork pool are gone."""
    processes = _processes(pool)
    return not processes or any(process.is_alive() for process in processes)
