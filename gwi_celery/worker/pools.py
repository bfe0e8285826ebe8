"""Celery's pools: which ones are usable, and their processes."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from gwi_celery import required
from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability import declared


class PoolCheck(bootsteps.Step):
    """Worker bootstep: refuses settings, tasks or a pool that would lose jobs, before any is taken."""

    label = "Pool check"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        required.check(worker.app.conf)  # settings may have been changed since setup()
        declared.check_all(worker.app)
        if worker.pool_cls.__module__ == "celery.concurrency.eventlet":
            raise ConfigurationError(
                "the eventlet pool can't be used: it replaces the threads and locks that renew leases "
                "and ack messages, gRPC doesn't support it, and its tasks stop half-way. Start the "
                "worker with -P gevent, threads, prefork or solo"
            )


def pool_processes(pool: Any) -> list[Any]:
    """A pool's child processes; none in a pool of threads or greenlets."""
    return list(getattr(getattr(pool, "_pool", None), "_pool", None) or ())


def pool_lives(pool: Any) -> bool:
    """Whether a job could run: False once all processes of a prefork pool are gone."""
    processes = pool_processes(pool)
    return not processes or any(process.is_alive() for process in processes)
