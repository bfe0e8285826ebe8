"""A clock that stands still until a test moves it."""

from __future__ import annotations


class FakeClock:
    """Stands at ``now``, in seconds; the wall clock and the monotonic one alike."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
