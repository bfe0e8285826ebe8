"""Time, as a thing that can be handed in.

The embedded broker and store decide every expiry by a :class:`Clock`, so that a test can hold it.
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
    """The clocks of this machine."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


#: Shared: it has no state.
SYSTEM_CLOCK = SystemClock()
