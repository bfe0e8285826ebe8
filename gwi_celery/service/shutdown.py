"""The end of the service: SIGTERM, and what has to happen in the ten seconds after it.

1. At once: /ready answers 503, /push refuses messages, running jobs see the stop flag.
2. At their next boundary jobs are handed back (a copy is published) and their pushes answered.
3. When none is left, or the grace has passed, the server stops, and then the pool. A job that
   reached no boundary is killed with its process: its lease runs out, and another instance resumes
   at its last step.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gwi_celery.reliability.stopping import raise_flag
from gwi_celery.service.admission import Admission
from gwi_celery.service.execute import Executor

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds for an idle pool to end, and for one with jobs that don't stop.
_IDLE_PATIENCE, _BUSY_PATIENCE = 5.0, 0.1


class Shutdown:
    """Drains the service at a signal, then ends its pool.

    Args:
        grace: Seconds that jobs have to end.
    """

    def __init__(self, admission: Admission, executor: Executor, grace: float) -> None:
        self._admission = admission
        self._executor = executor
        self._grace = grace
        self._draining: asyncio.Task[None] | None = None
        self._drained = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """While the service runs, handle its signals first and pass them to the server later."""
        if threading.current_thread() is not threading.main_thread():
            yield  # a server in a thread is told to stop by whoever started it
            return
        loop = asyncio.get_running_loop()
        servers: dict[int, Any] = {int(n): signal.getsignal(n) for n in _SIGNALS}

        def handle(number: int, frame: Any) -> None:
            raise_flag()
            loop.call_soon_threadsafe(self._begin, number, servers[number])

        for number in servers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, server in servers.items():
                signal.signal(number, server)

    def _begin(self, number: int, server: Any) -> None:
        if self._draining is None:
            logger.info("%s: taking nothing more", signal.Signals(number).name)
            self._admission.drain()
            self._draining = asyncio.ensure_future(self._drain())
        if callable(server):
            self._draining.add_done_callback(lambda _: server(number, None))

    async def _drain(self) -> None:
        self._drained = await self._admission.drained(self._grace)
        # Give the latest answers time to be sent before the server closes.
        await asyncio.sleep(0)

    async def finish(self) -> None:
        """Called when the server has stopped: end the jobs that are left, and the pool."""
        raise_flag()
        self._admission.drain()
        if self._draining is None:
            await self._drain()
        patience = _IDLE_PATIENCE if self._drained else _BUSY_PATIENCE
        await asyncio.to_thread(self._executor.stop, patience)
