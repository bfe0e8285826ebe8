"""Random pauses, so that many who failed together don't try again together."""

from __future__ import annotations

import random

#: The system's own source: forked processes don't share its state, and nobody else's seed is touched.
_source = random.SystemRandom()


def jitter(seconds: float, least: float, most: float) -> float:
    """``seconds``, times something from ``least`` to ``most``."""
    return seconds * _source.uniform(least, most)
