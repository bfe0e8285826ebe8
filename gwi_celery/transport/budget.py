"""How much memory one message may take once it is decoded."""

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

#: Share of a process's memory for one message: its worker and a pool process decode it, a job copies its
#: arguments, and several run at a time.
_SHARE: Final = 1 / 24
#: Copies of a message's bytes that are counted, beside what they are parsed into. Measured: a text of
#: 9 MB takes 155 MB on its way into a job, worker and pool process together.
COPIES: Final = 3
#: Whatever memory there is, bytes.
_LEAST: Final = 16_000_000
_MOST: Final = 256_000_000

_CGROUP: Final = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


@functools.cache
def automatic() -> int:
    """Bytes, by the memory of the container, or of the machine: a 24th of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    for place in _CGROUP:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            limits.append(int(Path(place).read_text(encoding="ascii")))
    return round(min(max(min(limits) * _SHARE, _LEAST), _MOST))


def check(json: str | bytes, limit: int, what: str, *, copies: int = COPIES) -> None:
    """Raise MalformedMessage for JSON that would take more than ``limit`` bytes in memory.

    ``copies``: of its bytes as they are, beside what they are parsed into.
    """
    raw = copies * len(json)
    size = raw + depth.decoded_size(json, enough=max(limit - raw, 0))
    if size > limit:
        raise MalformedMessage(
            f"{what} is too large for this worker: decoded it would take up to {size:,} bytes of "
            f"memory, and {limit:,} are allowed: {ADVICE}"
        )
