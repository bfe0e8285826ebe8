"""Many processes at one Firestore, with all that goes wrong: ``python -m``, folder, project.

The parent forks workers, kills some of them without warning and replaces them. A worker claims jobs
again and again, some of which it finishes, fails, hands back or drops as if it had crashed; it goes on
writing with leases that are long over; its clock is wrong; and what it sends is lost at times, or the
answer is. What each meant to do, and what it was answered, is a line of JSON in the folder: the trail
that tests/contract/test_firestore_stress.py holds against the invariants.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc

from gwi_celery.errors import JobCancelled, LeaseLost, StoreUnavailable
from gwi_celery.firestore.client import ServerError
from gwi_celery.firestore.url import parse
from gwi_celery.stores.base import (
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    Lease,
    LockRef,
    Outcome,
)
from gwi_celery.stores.firestore import FirestoreStore
from tests.contract.stores import failure, step, success
from tests.firestore_wire import Code

PROCESSES = 8
CLAIMS = 200
LOCKS = 20
#: Jobs under each lock.
JOBS = 12
STEPS = ("one", "two", "three")
#: Seconds; short, so that what crashed is taken over within the test, and slow holders are too.
LEASE_TTL = 0.4
#: Seconds that a worker's clock is wrong, at most, to either side.
SKEW = 30.0
#: Workers that are killed.
KILLS = 3
#: Share of calls of which the request is lost, and of which the answer is.
LOST = 0.02


class Sink:
    """Outside of the store: takes what a job does, unless it comes with an older token."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "sink.sqlite3", isolation_level=None, timeout=60)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE IF NOT EXISTS sink (lock TEXT PRIMARY KEY, fence INTEGER)")

    def write(self, lock: str, fence: int) -> bool:
        self._db.execute("BEGIN IMMEDIATE")
        row = self._db.execute("SELECT fence FROM sink WHERE lock = ?", (lock,)).fetchone()
        taken = row is None or row[0] <= fence
        if taken:
            self._db.execute("INSERT OR REPLACE INTO sink VALUES (?, ?)", (lock, fence))
        self._db.execute("COMMIT")
        return taken


class Worker:
    def __init__(self, folder: Path, project: str, number: int) -> None:
        self.random = random.Random(number)
        self.name = f"w{number}"
        self.trail = os.open(folder / f"{self.name}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self.sink = Sink(folder)
        self.store = FirestoreStore(parse(f"firestore://{project}"), intercept=self.lose)
        self.serial = itertools.count()
        self.zombies: list[Lease] = []
        wrong, right = self.random.uniform(-SKEW, SKEW), time.time
        # gRPC's Python half makes deadlines of it for the other half, whose clock stays right. On a
        # machine with a wrong clock both are wrong.
        grpc._channel.time = SimpleNamespace(**vars(time))
        time.time = lambda: right() + wrong

    def lose(self, method: str, request: Any, call: Any) -> Any:
        dice = self.random.random()
        if dice < LOST:
            raise ServerError(Code.UNAVAILABLE, "the request is lost")
        answer = call(request)
        if dice < 2 * LOST:
            raise ServerError(Code.UNAVAILABLE, "the answer is lost")
        return answer

    def log(self, **what: Any) -> None:
        os.write(self.trail, json.dumps(what).encode() + b"\n")

    def run(self, claims: int) -> None:
        for _ in range(claims):
            self.claim()
            if self.zombies and self.random.random() < 0.25:
                self.write_late(self.random.choice(self.zombies))
            if self.random.random() < 0.03:
                self.force(LockRef("acme", (f"lock {self.random.randrange(LOCKS)}",)))

    def claim(self) -> None:
        lock = f"lock {self.random.randrange(LOCKS)}"
        job = f"{lock} job {self.random.randrange(JOBS)}"
        n = next(self.serial)
        request = ClaimRequest(
            job=JobRef("acme", "task", job),
            lock=LockRef("acme", (lock,)),
            run_id=lock,
            fingerprint="f",
            submission=f"{self.name}-{n}",
            owner=self.name,
            nonce=f"{self.name}-{os.getpid()}-{n}",
            lease_ttl=LEASE_TTL,
            result_ttl=3600.0,
            redelivered=self.random.random() < 0.3,
        )
        begun = time.monotonic_ns()
        try:
            answer = self.store.claim(request)
        except StoreUnavailable as exc:
            self.log(did="claim", lock=lock, job=job, answer="unknown", why=str(exc))
            return
        ended = time.monotonic_ns()
        what: dict[str, Any] = {"did": "claim", "lock": lock, "job": job, "at": [begun, ended]}
        if isinstance(answer, Completed):
            assert answer.record.outcome is not None
            outcome = answer.record.outcome.decode()
            generation = answer.record.generation
            self.log(**what, answer="completed", generation=generation, outcome=outcome)
        elif isinstance(answer, Held):
            self.log(**what, answer="held", by=answer.by)
        elif isinstance(answer, Claimed):
            lease = answer.lease
            self.log(**what, answer="claimed", fence=lease.fence, generation=lease.generation)
            self.zombies = [*self.zombies[-5:], lease]
            self.work(answer, lock, job)

    def work(self, claimed: Claimed, lock: str, job: str) -> None:
        lease, end = claimed.lease, self.random.random()
        try:
            recorded: dict[str, str] = {}
            if claimed.has_checkpoints:
                recorded = {c.name: c.blob.decode() for c in self.store.load(lease)}
            self.log(did="load", job=job, fence=lease.fence, steps=recorded)
            for name in STEPS:
                if name not in recorded:
                    lease = self.save(lease, lock, job, name)
                if end < 0.15 and self.random.random() < 0.5:
                    return  # crashed, for all that anyone knows
            if self.random.random() < 0.1:
                time.sleep(LEASE_TTL * 1.2)  # too slow: somebody may have taken over
            if end < 0.25:
                self.store.release(lease)
                return
            self.finish(lease, lock, job, failure if end < 0.4 else success)
        except (LeaseLost, JobCancelled, StoreUnavailable):
            return

    def save(self, lease: Lease, lock: str, job: str, name: str) -> Lease:
        taken = self.sink.write(lock, lease.fence)
        self.log(did="effect", lock=lock, fence=lease.fence, taken=taken)
        blob = f"{name} by {lease.fence}"
        return self.do(
            lease,
            lock,
            job,
            "save",
            blob,
            lambda: self.store.save(lease, step(name, blob.encode())),
            step=name,
        )

    def finish(self, lease: Lease, lock: str, job: str, make: Any) -> None:
        outcome: Outcome = make(f"outcome by {lease.fence}".encode())
        self.do(
            lease,
            lock,
            job,
            "finish",
            outcome.blob.decode(),
            lambda: self.store.finish(lease, outcome),
        )

    def do(
        self, lease: Lease, lock: str, job: str, did: str, blob: str, call: Any, **more: Any
    ) -> Any:
        what = {
            "did": did,
            "lock": lock,
            "job": job,
            "fence": lease.fence,
            "generation": lease.generation,
            "blob": blob,
            **more,
        }
        self.log(**what, answer="begun")
        begun = time.monotonic_ns()
        answer = "unknown"
        try:
            result = call()
            answer = "accepted"
            return result
        except (LeaseLost, JobCancelled):
            answer = "refused"
            raise
        finally:
            self.log(**what, answer=answer, at=[begun, time.monotonic_ns()])

    def write_late(self, lease: Lease) -> None:
        """A zombie wakes up, and knows of nothing."""
        lock, job = lease.lock.scope[0], lease.job.key
        try:
            if self.random.random() < 0.5:
                name = self.random.choice(STEPS)
                # It would call what it has not recorded; as it recorded nothing, that is anything.
                self.save(lease, lock, job, name)
            else:
                self.finish(lease, lock, job, success)
        except (LeaseLost, JobCancelled, StoreUnavailable, ValueError):
            return

    def force(self, lock: LockRef) -> None:
        begun = time.monotonic_ns()
        try:
            self.store.force_release(lock)
        except StoreUnavailable:
            return
        self.log(did="force", lock=lock.scope[0], at=[begun, time.monotonic_ns()])


def fork(folder: Path, project: str, number: int, claims: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        Worker(folder, project, number).run(claims)
        code = 0
    finally:
        os._exit(code)


def claims_made(folder: Path, number: int) -> int:
    trail = folder / f"w{number}.jsonl"
    return trail.read_bytes().count(b'"did": "claim"') if trail.exists() else 0


def main(folder: Path, project: str) -> None:
    Sink(folder)
    # This process makes no call itself, so that its forks are of an idle gRPC.
    running = {fork(folder, project, number, CLAIMS): number for number in range(PROCESSES)}
    numbers = itertools.count(PROCESSES)
    doomed = list(running)[:KILLS]
    failed = 0
    while running:
        for pid in [pid for pid in doomed if claims_made(folder, running[pid]) > CLAIMS // 4]:
            doomed.remove(pid)
            os.kill(pid, signal.SIGKILL)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.02)
            continue
        doomed = [each for each in doomed if each != pid]
        number = running.pop(pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            left = CLAIMS - claims_made(folder, number)
            again = next(numbers)
            running[fork(folder, project, again, left)] = again
        elif status:
            failed += 1
    sys.exit(failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
