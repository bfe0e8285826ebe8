"""The protocol one would write first, on Firestore's transactions: what ours is measured against.

A lock with owner and expiry, an idempotency record checked in a transaction of its own, a checkpoint
with a version, each read and written in a transaction. It has the faults of that design (the record is
checked apart from the lock, expiry is by the worker's clock) and is good for nothing but its cost.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore


class Naive:
    """One process's handle. ``FIRESTORE_EMULATOR_HOST`` must name the emulator."""

    def __init__(self, project: str) -> None:
        self._client = firestore.Client(project=project, credentials=AnonymousCredentials())
        self.transactions = 0

    def run(self, key: str, steps: int) -> None:
        """One uncontended job, from claim to release."""
        owner = uuid4().hex
        lock = self._client.document(f"naive_locks/{key}")
        record = self._client.document(f"naive_records/{key}")
        self._in_transaction(lambda t: self._acquire(t, lock, owner))
        self._in_transaction(lambda t: self._check(t, record))
        for number in range(steps):
            step = self._client.document(f"naive_records/{key}/steps/{number}")
            self._in_transaction(lambda t, step=step: self._checkpoint(t, step))
        self._in_transaction(lambda t: self._complete(t, record))
        self._in_transaction(lambda t: self._release(t, lock, owner))

    def _in_transaction(self, body: Any) -> Any:
        self.transactions += 1
        return firestore.transactional(body)(self._client.transaction())

    @staticmethod
    def _acquire(transaction: Any, lock: Any, owner: str) -> None:
        held = lock.get(transaction=transaction)
        if held.exists and held.get("expires") > time.time():
            raise RuntimeError("held")
        transaction.set(lock, {"owner": owner, "expires": time.time() + 60})

    @staticmethod
    def _check(transaction: Any, record: Any) -> None:
        if not record.get(transaction=transaction).exists:
            transaction.set(record, {"status": "pending", "created": time.time()})

    @staticmethod
    def _checkpoint(transaction: Any, step: Any) -> None:
        before = step.get(transaction=transaction)
        version = before.get("version") + 1 if before.exists else 1
        transaction.set(step, {"version": version, "value": "done", "saved": time.time()})

    @staticmethod
    def _complete(transaction: Any, record: Any) -> None:
        record.get(transaction=transaction)
        transaction.set(record, {"status": "done", "result": "done", "updated": time.time()})

    @staticmethod
    def _release(transaction: Any, lock: Any, owner: str) -> None:
        if lock.get(transaction=transaction).get("owner") == owner:
            transaction.delete(lock)
