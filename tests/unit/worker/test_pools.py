"""Pools that a worker refuses to start with, and what a prefork pool forgets when it stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import concurrency
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import Hub
from kombu.utils.imports import symbol_by_name

from gwi_celery.errors import ConfigurationError
from gwi_celery.worker.pools import PoolCheck, flush
from tests.machine import PATIENCE


def test_eventlet_is_refused_with_what_to_use_instead(app) -> None:
    pool = type("TaskPool", (), {"__module__": concurrency.ALIASES["eventlet"].partition(":")[0]})
    with pytest.raises(ConfigurationError, match=r"eventlet pool can't be used.*-P gevent"):
        PoolCheck(SimpleNamespace(app=app, pool_cls=pool))
    assert PoolCheck in map(symbol_by_name, app.steps["worker"])


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_others_start(app, pool: str) -> None:
    PoolCheck(SimpleNamespace(app=app, pool_cls=concurrency.get_implementation(pool)))


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def processes(hub: Hub) -> Iterator[Any]:
    """A prefork pool of one process, on an event loop that only :func:`turned` turns."""
    made = AsynPool(processes=1, threads=False)
    made.register_with_event_loop(hub)
    turned(hub, lambda: made._all_inqueues)  # the process is up
    yield made
    for process in made._pool:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    made.terminate()


def turned(hub: Hub, until: Callable[[], object]) -> None:
    loop, deadline = hub.create_loop(), time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        next(loop)


def test_a_stop_forgets_no_job_that_a_process_was_just_given(processes: Any, hub: Hub) -> None:
    """Forgotten, it ran, and ran again elsewhere; and its process took 30 s to end."""
    job = processes.apply_async(os.getpid)
    turned(hub, lambda: job._write_to)  # the process has it; that it took it has not been read yet
    assert not job.accepted()
    waiting = processes.apply_async(os.getpid)
    processes.close()
    flush(processes, hub, PATIENCE)
    assert job.accepted()
    assert waiting._job not in processes._cache, "no process has that one"
    turned(hub, job.ready)
    assert job.get() == processes._pool[0].pid
    [counter] = processes._on_ready_counters.values()
    assert counter.value == 1, "so the process ends at once"


def test_a_stop_does_not_wait_for_a_process_that_runs_another_job(processes: Any, hub: Hub) -> None:
    running = processes.apply_async(time.sleep, (PATIENCE,))
    turned(hub, running.accepted)
    second = processes.apply_async(os.getpid)
    second._write_to = processes._pool[0]  # as with Celery's strategy "fast"
    flush(processes, hub, PATIENCE)
    assert second._job not in processes._cache
    assert running._job in processes._cache
