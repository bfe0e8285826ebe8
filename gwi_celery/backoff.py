"""Pauses between tries: random, so that many who failed together don't try again together."""

from __future__ import annotations

import random

#: The system's source: forked processes share no state, and the user's seed isn't touched.
_source = random.SystemRandom()


def jitter(seconds: float, least: float, most: float) -> float:
    """``seconds`` times a random factor from ``least`` to ``most``."""
    return seconds * _source.uniform(least, most)


class Backoff:
    """Pauses that double, from ``first`` to ``longest`` seconds, each varied by up to a fifth."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = self._pause = first
        self._longest = longest

    def next(self) -> float:
        """Seconds to wait now; the next pause is twice as long."""
        pause, self._pause = self._pause, min(self._pause * 2, self._longest)
        return jitter(pause, 0.8, 1.2)

    def reset(self) -> None:
        """Start again from the first pause."""
        self._pause = self._first
