"""The backends on which the store's contract is checked.

A new backend joins with one entry in ``CASES``; one that several processes can share, with one in
``SHARED`` too. The tests stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gwi_celery.firestore.url import parse
from gwi_celery.ids import digest, fingerprint
from gwi_celery.stores.base import (
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    JobRecord,
    JobRef,
    JobStatus,
    LockRecord,
    LockRef,
    Outcome,
    Replay,
    Store,
)
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.sqlite import SqliteStore
from tests.clocks import FakeClock
from tests.firestore_wire import Wire


@dataclass
class StoreCase:
    """One backend under test, with nothing in it yet."""

    store: Store
    #: Gives one more handle on the same data, as another process would have.
    another: Callable[[], Store]
    #: Lets seconds of the store's clock pass.
    advance: Callable[[float], None]
    #: Seconds. Tests let fractions and small multiples of these pass, never a fixed time.
    lease_ttl: float = 30.0
    result_ttl: float = 3600.0
    _nonces: Iterator[int] = field(default_factory=itertools.count)

    def request(
        self,
        key: str = "k",
        *,
        tenant: str = "acme",
        task: str = "review",
        scope: tuple[str, ...] | None = None,
        run_id: str | None = "r1",
        payload: object = None,
        submission: str = "s1",
        owner: str = "host:1",
        nonce: str | None = None,
        replay: Replay | None = None,
    ) -> ClaimRequest:
        """A claim by an attempt of its own; each job has a lock of its own unless told."""
        return ClaimRequest(
            job=JobRef(tenant, task, key),
            lock=LockRef(tenant, scope if scope is not None else (task, key)),
            run_id=run_id,
            fingerprint=fingerprint(payload),
            submission=submission,
            owner=owner,
            nonce=nonce if nonce is not None else f"nonce-{next(self._nonces)}",
            lease_ttl=self.lease_ttl,
            result_ttl=self.result_ttl,
            replay=replay,
        )

    def take(self, request: ClaimRequest) -> Claimed:
        """A claim that must be granted."""
        answer = self.store.claim(request)
        assert isinstance(answer, Claimed), answer
        return answer

    def tick(self) -> None:
        """Enough time for two changes to be told apart; short beside a lease."""
        self.advance(self.lease_ttl / 100)

    def outlast_lease(self) -> None:
        self.advance(self.lease_ttl * 1.1)

    def outlast_result(self) -> None:
        self.advance(self.result_ttl * 1.1)

    def seen(self, request: ClaimRequest) -> Seen:
        """All there is to see of a job and its lock, to compare before and after."""
        return Seen(
            self.store.get_job(request.job),
            self.store.get_checkpoints(request.job),
            self.store.get_lock(request.lock),
        )


@dataclass(frozen=True)
class Seen:
    job: JobRecord | None
    checkpoints: list[Checkpoint]
    lock: LockRecord | None


def step(name: str, blob: bytes = b"done") -> Checkpoint:
    return Checkpoint(name, CheckpointKind.STEP, blob)


def cursor(name: str, blob: bytes, version: int) -> Checkpoint:
    return Checkpoint(name, CheckpointKind.CURSOR, blob, version)


def value(name: str, blob: bytes, version: int) -> Checkpoint:
    return Checkpoint(name, CheckpointKind.VALUE, blob, version)


def success(blob: bytes = b"result") -> Outcome:
    return Outcome(JobStatus.SUCCEEDED, blob)


def failure(blob: bytes = b"error") -> Outcome:
    return Outcome(JobStatus.FAILED, blob)


# --- the backends ---------------------------------------------------------------------------------


@contextmanager
def _sqlite_file(folder: Path) -> Iterator[StoreCase]:
    clock = FakeClock()
    opened: list[Store] = []

    def another() -> Store:
        opened.append(SqliteStore(folder, clock=clock))
        return opened[-1]

    yield StoreCase(another(), another, clock.advance)
    for store in opened:
        store.close()


@contextmanager
def _sqlite_memory(folder: Path) -> Iterator[StoreCase]:
    clock = FakeClock()
    store = SqliteStore(None, clock=clock)
    yield StoreCase(store, lambda: store, clock.advance)
    store.close()


@contextmanager
def _firestore(folder: Path) -> Iterator[StoreCase]:
    """On the emulator. Its clock goes on by itself, so leases are long, and tests move it in jumps."""
    wire = Wire()
    opened: list[Store] = []

    def another() -> Store:
        opened.append(wire.store())
        return opened[-1]

    yield StoreCase(another(), another, wire.advance, lease_ttl=3000.0, result_ttl=360_000.0)
    for store in opened:
        store.close()
    wire.close()


CASES: dict[str, Callable[[Path], AbstractContextManager[StoreCase]]] = {
    "sqlite-file": _sqlite_file,
    "sqlite-memory": _sqlite_memory,
    "firestore": _firestore,
}

#: Opens, in any process, the store at a place, which any path names. Their clock is the real one.
SHARED: dict[str, Callable[[str], Store]] = {
    "sqlite-file": lambda place: SqliteStore(Path(place)),
    "firestore": lambda place: FirestoreStore(
        parse(f"firestore://p-{digest('place', place)[:20]}")
    ),
}
