"""How long something would have taken on an idle machine: what tests may put a bound on."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

#: Seconds that something which will happen may take, however busy the machine is. Reached only if it
#: never happens, as with a mutant, for which tests.mutants sets less.
PATIENCE = float(os.environ.get("TESTS_PATIENCE", "120"))

#: Seconds of a CPU that a probe takes, and between two of them.
_PROBE, _PAUSE = 0.01, 0.09


def examples(number: int) -> int:
    """Of hypothesis: that many, and in proportion for the profile of ``make test``."""
    from hypothesis import settings

    return number * settings.default.max_examples // 100


class Stopwatch:
    """Counts seconds, each for as much of a CPU as the machine had to give at the time.

    While it runs, a thread asks for a hundredth of a second of a CPU ten times a second. Where that takes
    four hundredths, because others want the CPU too, time counts a fourth.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since = 0.0
        self._share = 1.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._probe, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        with self._lock:
            if self._over.is_set():
                return self._seconds
            return self._seconds + (time.monotonic() - self._since) * self._share

    def _probe(self) -> None:
        while not self._over.is_set():
            began, used = time.monotonic(), time.thread_time()
            while time.thread_time() - used < _PROBE:
                pass
            now = time.monotonic()
            with self._lock:
                self._share = min(_PROBE / (now - began), 1.0)
                self._seconds += (now - self._since) * self._share
                self._since = now
            self._over.wait(_PAUSE)
        with self._lock:
            self._seconds += (time.monotonic() - self._since) * self._share
