"""How much memory one message may take when it is decoded."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
from pathlib import Path
from typing import Final

from gwi_celery.errors import MalformedMessage
from gwi_celery.transport import depth
from gwi_celery.transport.compression import ADVICE

#: Share of the memory that one message may take: the worker and a pool process decode it, a job copies
#: its arguments, and several jobs run at a time.
_SHARE: Final = 1 / 24
#: Copies of a message's bytes that are counted in addition to the parsed values. Measured: a text of 9 MB
#: takes 155 MB on its way into a job, in worker and pool process together.
COPIES: Final = 3
#: Bounds of the budget, bytes, whatever memory there is.
_LEAST: Final = 16_000_000
_MOST: Final = 256_000_000

_CGROUP: Final = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


@functools.cache
def automatic() -> int:
    """The budget in bytes: a 24th of the memory of the container, or of the machine."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    for place in _CGROUP:
        with contextlib.suppress(OSError, ValueError):  # the file is missing, or says "max"
            limits.append(int(Path(place).read_text(encoding="ascii")))
    return round(min(max(min(limits) * _SHARE, _LEAST), _MOST))


def check(json: str | bytes, limit: int, what: str, *, copies: int = COPIES) -> None:
    """Raise MalformedMessage for JSON that would take more than ``limit`` bytes in memory.

    Args:
        what: Names the JSON in the error.
        copies: Copies of its bytes that are counted in addition to the parsed values.
    """
    raw = copies * len(json)
    size = raw + depth.decoded_size(json, enough=max(limit - raw, 0))
    if size > limit:
        raise MalformedMessage(
            f"{what} is too large for this worker: decoded, it would take up to {size:,} bytes of "
            f"memory, and {limit:,} are allowed: {ADVICE}"
        )
