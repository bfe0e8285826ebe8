"""Clocks as objects.

The embedded broker and store decide expiries by a :class:`Clock`, so that a test can control it; other
modules use :mod:`time` directly.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A wall clock and a monotonic clock, both in seconds."""

    def time(self) -> float:
        """Seconds since the epoch. May jump; never used to measure a duration."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start. Never goes backwards."""


class SystemClock:
    """This machine's clocks."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


#: Shared: it has no state.
SYSTEM_CLOCK = SystemClock()
