"""A chord of many parts, at most three of a tenant at a time; no tenant holds up another.

    python -m examples.chord_per_tenant

A part over the limit waits outside the worker: it takes no place of another tenant's.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from typing import Any

from celery import Celery, chord

from examples.local import worker
from gwi_celery import Limit, Reliable, ReliableTask, setup

os.environ.setdefault("GWI_FOLDER", tempfile.mkdtemp(prefix="chord-per-tenant-"))
app = Celery("chord")
setup(app, contention_delay=0.1, max_contention_delay=0.2)

AT_A_TIME = 3
three_each = Reliable(
    key="payload", lock=None, limits=[Limit("{tenant_id}", max_running=AT_A_TIME)]
)
_lock = threading.Lock()
running: Counter[str] = Counter()
most: Counter[str] = Counter()


@app.task(base=ReliableTask, bind=True, reliable=three_each)
def resize(self: Any, part: int, *, tenant_id: str, run_id: str) -> int:
    with _lock:
        running[tenant_id] += 1
        most[tenant_id] = max(most[tenant_id], running[tenant_id])
    try:
        return int(self.step("resize", work, part))
    finally:
        with _lock:
            running[tenant_id] -= 1


def work(part: int) -> int:
    time.sleep(0.05)
    return part * part


@app.task(base=ReliableTask)
def album(sizes: list[int], *, tenant_id: str, run_id: str) -> int:
    """The body: runs when the last part has returned, with all results, in the order of the parts."""
    return sum(sizes)


def start(tenant: str, parts: int) -> Any:
    call = {"tenant_id": tenant, "run_id": "album-1"}
    return chord([resize.s(part, **call) for part in range(parts)])(album.s(**call))


def main() -> None:
    with worker(app, concurrency=8):
        began = time.monotonic()
        large = start("acme", 30)
        small = start("globex", 6)
        assert small.get(timeout=100) == sum(n * n for n in range(6))
        print(f"the small album is done after {time.monotonic() - began:.1f} s")
        assert large.get(timeout=100) == sum(n * n for n in range(30))
        print(f"the large one after {time.monotonic() - began:.1f} s")
    print(f"most at a time: {dict(most)}")
    assert max(most.values()) <= AT_A_TIME


if __name__ == "__main__":
    main()
