"""What runs against a Firestore store in processes of their own: ``python -m benchmarks.protocol``.

``jobs`` measures uncontended jobs with our protocol and with the naive one, in turn; ``contend`` claims
one key as often as it can; both read orders from the command line and print JSON.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from uuid import uuid4

from benchmarks.naive import Naive
from gwi_celery.stores.base import (
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    JobRef,
    JobStatus,
    LockRef,
    Outcome,
    Store,
)
from gwi_celery.stores.url import open_store

TENANT, TASK = "bench", "bench.job"


def request(key: str, lock: str) -> ClaimRequest:
    return ClaimRequest(
        job=JobRef(TENANT, TASK, key),
        lock=LockRef(TENANT, (lock,)),
        run_id=key,
        fingerprint="f" * 64,
        submission=key,
        owner="bench",
        nonce=uuid4().hex,
        lease_ttl=60.0,
        result_ttl=86400.0,
    )


def run(store: Store, key: str, steps: int) -> None:
    """One uncontended job, from claim to finish."""
    answer = store.claim(request(key, key))
    assert isinstance(answer, Claimed), answer
    lease = answer.lease
    for number in range(steps):
        checkpoint = Checkpoint(f"step {number}", CheckpointKind.STEP, b'"done"')
        lease = store.save(lease, checkpoint)
    store.finish(lease, Outcome(JobStatus.SUCCEEDED, b'"done"'))


def jobs(project: str, count: int, repetitions: int, steps: int) -> dict[str, float]:
    """Seconds of one job each way, medians of repetitions that take turns."""
    store, naive = open_store(f"firestore://{project}"), Naive(project)
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    for repetition in range(repetitions + 1):
        for name, each in times.items():
            began = time.perf_counter()
            for _ in range(count):
                key = uuid4().hex
                if name == "ours":
                    run(store, key, steps)
                else:
                    naive.run(key, steps)
            if repetition:  # the first warms up both, and the server
                each.append((time.perf_counter() - began) / count)
    store.close()
    return {name: statistics.median(each) for name, each in times.items()}


def contend(project: str, seconds: float) -> dict[str, float]:
    """Claims granted and refused within ``seconds``, on the one key that all contend for."""
    store = open_store(f"firestore://{project}")
    granted = refused = 0
    print("ready", flush=True)
    sys.stdin.readline()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        answer = store.claim(request(uuid4().hex, "the one"))
        if isinstance(answer, Claimed):
            granted += 1
            store.finish(answer.lease, Outcome(JobStatus.SUCCEEDED, b"null"))
        else:
            refused += 1
            time.sleep(random.uniform(0, 0.01))
    store.close()
    return {"granted": granted, "refused": refused}


def main(arguments: list[str]) -> None:
    what, project, *numbers = arguments
    if what == "jobs":
        count, repetitions, steps = map(int, numbers)
        print(json.dumps(jobs(project, count, repetitions, steps)))
    else:
        print(json.dumps(contend(project, float(numbers[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
