"""Which of Celery's pools can keep the promise."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from gwi_celery.errors import ConfigurationError


class PoolCheck(bootsteps.Step):
    """Worker bootstep: refuses a pool that jobs would be lost in, before any is taken."""

    label = "Pool check"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        if worker.pool_cls.__module__ == "celery.concurrency.eventlet":
            raise ConfigurationError(
                "the eventlet pool can't be used: it replaces the threads and locks that leases are "
                "renewed and messages are acked with, gRPC doesn't know it, and its tasks stop half-way. "
                "Start the worker with -P gevent, threads, prefork or solo"
            )
