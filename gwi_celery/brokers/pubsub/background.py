"""What a connection does in the background besides acks: restoring, looking for bindings, burying.

Such work may take seconds, or wait for a service that stalls; nothing else waits for it. Its thread is
there only while there is something to do.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from gwi_celery import forks

logger = logging.getLogger(__name__)


class Background:
    """Calls jobs one after the other. After a fork, what waited is the parent's to do."""

    def __init__(self) -> None:
        self._changed = forks.condition()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._jobs: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None

    def run(self, job: Callable[[], object]) -> None:
        """Call ``job`` soon. What it raises is logged."""
        with self._changed:
            if self._pid != os.getpid():
                self._reset()
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gwi-jobs", daemon=True)
                self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Wait until all is done; False if ``timeout`` seconds were not enough."""
        if self._pid != os.getpid():
            return True
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._thread is not None:
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is threading.current_thread():
                    return False
                self._changed.wait(left)
        return True

    def stop(self, timeout: float) -> None:
        """Flush; what is not begun by then is dropped. Used again, it starts again."""
        if not self.flush(timeout) and self._pid == os.getpid():
            with self._changed:
                if self._jobs:
                    logger.info("%d things were left undone in %g s", len(self._jobs), timeout)
                self._jobs.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    self._changed.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                logger.exception("a task in the background failed")
