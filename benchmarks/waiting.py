"""Waiting for a result in Firestore: by listening, and by asking now and then.

One process waits, a thread of it stores each result some time after the wait began. Measured are the
time from the stored result to the end of the wait, and what the wait cost in requests and in
documents read, for which Google takes money.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.backends.base import SyncBackendMixin

from gwi_celery.backends.embedded import EmbeddedBackend
from gwi_celery.backends.firestore import FirestoreBackend
from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.testing.emulators import start_firestore

#: Seconds until a result is there.
DELAYS = (0.1, 1.0, 3.0)


def main(quick: bool) -> int:
    with start_firestore() as emulator:
        os.environ[FIRESTORE_HOST] = emulator.endpoint
        rounds = 6 if quick else 20
        print("a result that is there after ...: ms until it is known (p50, p90), requests, reads")
        for delay in DELAYS:
            for name, wait in WAYS.items():
                _print(name, delay, *_measure(wait, delay, rounds))
    return 0


#: Celery's own asks each half second; the embedded backend's way asks each 2 to 50 ms.
WAYS: dict[str, Callable[..., Any]] = {
    "listening": FirestoreBackend.wait_for,
    "asking, as Celery does": SyncBackendMixin.wait_for,
    "asking often": EmbeddedBackend.wait_for,
}


def _measure(wait: Any, delay: float, rounds: int) -> tuple[list[float], Counter[str]]:
    app = Celery(set_as_current=False)
    url = f"firestore://bench-{uuid4().hex[:12]}"
    counts: Counter[str] = Counter()

    def count(method: str, request: Any, call: Callable[[Any], Any]) -> Any:
        counts["requests"] += 1
        answer = call(request)
        if method == "BatchGetDocuments":
            counts["reads"] += len(answer)  # what is missing is charged as well
        return answer

    waiter, writer = FirestoreBackend(app, url=url, intercept=count), FirestoreBackend(app, url=url)
    writer.store_result("first", 1, "SUCCESS")
    times = []
    for n in range(rounds + 1):
        stored: list[float] = []

        def store(n: int = n, stored: list[float] = stored) -> None:
            writer.store_result(f"t{n}", n, "SUCCESS")
            stored.append(time.monotonic())

        # Not always at the same moment of a half second.
        timer = threading.Timer(delay * (0.8 + 0.4 * n / rounds), store)
        timer.start()
        wait(waiter, f"t{n}", timeout=60)
        known = time.monotonic()
        timer.join()
        if n == 0:
            counts.clear()  # connections are made once
            continue
        times.append(max(known - stored[0], 0.0))
        if wait is FirestoreBackend.wait_for:
            # Its target's first state, missing, and the change: a read each. Told, not asked for.
            counts["reads"] += 2
            counts["requests"] += 2  # messages on the stream: add a target, and remove it
    waiter.close()
    writer.close()
    return times, counts


def _print(name: str, delay: float, times: list[float], counts: Counter[str]) -> None:
    p50, p90 = statistics.median(times), sorted(times)[int(len(times) * 0.9)]
    each = [counts[what] / len(times) for what in ("requests", "reads")]
    print(
        f"{delay:4.1f} s  {name:24} {p50 * 1000:7.1f} {p90 * 1000:7.1f}"
        f" {each[0]:7.1f} {each[1]:7.1f}",
        flush=True,
    )
