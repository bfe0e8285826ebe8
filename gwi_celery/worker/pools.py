"""Celery's pools: which ones are usable, and their processes."""

from __future__ import annotations

import logging
import time
from functools import partial
from inspect import isgenerator
from multiprocessing import connection
from typing import Any

from celery import bootsteps

from gwi_celery import required
from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability import declared

logger = logging.getLogger(__name__)

#: Seconds for an idle pool process to say that it has taken a job.
_TAKES = 3.0


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


def adapt(pool: Any, hub: Any) -> None:
    """Keep a prefork pool, which has started, from forgetting jobs that its processes have."""
    processes = getattr(pool, "_pool", None)
    if hasattr(processes, "flush") and hub is not None:
        pool.flush = partial(flush, processes, hub)


def flush(processes: Any, hub: Any, patience: float = _TAKES) -> None:
    """Forget the jobs that no process has been given: a prefork pool's own ``flush``.

    Celery's also forgets a job that a process has taken, if it has not read the process's report of that.
    So if the worker is told to stop just after handing a job over, the process runs it, nobody acks its
    message, and at its end the process waits 30 s (billiard's limit) for its result to be read. Here the
    reports are read first.

    Args:
        processes: Celery's AsynPool.
        hub: The event loop that reads the processes' reports.
        patience: Seconds to wait for them.
    """
    deadline = time.monotonic() + patience
    try:
        while given := _given(processes, hub):
            if not (readable := connection.wait(given, max(0.0, deadline - time.monotonic()))):
                break
            for fd in readable:
                _read(hub, fd)
    except Exception:
        logger.exception("the last reports of the pool's processes could not be read")
    processes.flush()


def _given(processes: Any, hub: Any) -> list[int]:
    """Descriptors of the processes that were given a job and have not reported yet that they took it."""
    jobs = list(processes._cache.values())
    busy = {pid for job in jobs if job._accepted for pid in job.worker_pids()}
    given = {job._write_to for job in jobs if not job._accepted and _is_written(job)}
    return [
        process.outqR_fd
        for process in given
        if process.pid not in busy and process.outqR_fd in hub.readers and process._is_alive()
    ]


def _is_written(job: Any) -> bool:
    writer = getattr(job, "_writer", None)  # a weak reference: what still writes it
    return job._write_to is not None and (writer is None or writer() is None)


def _read(hub: Any, fd: Any) -> None:
    """Do what the event loop does when there is something to read."""
    callback, args = hub.readers[fd]
    if not isgenerator(callback):
        callback(*args)
        return
    try:
        next(callback)  # it has read a part of a message
    except StopIteration:
        pass
    except (OSError, EOFError):
        hub.remove_reader(fd)
