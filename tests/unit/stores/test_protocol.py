"""Rules that no store's test can isolate, as the store itself never lets it come to that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gwi_celery.errors import LeaseLost
from gwi_celery.stores.base import JobRef, JobStatus, Lease, LockRef
from gwi_celery.stores.protocol import check_holder

LEASE = Lease(
    job=JobRef("acme", "t", "k"),
    lock=LockRef("acme", ("run", "r1")),
    fence=7,
    nonce="n",
    ttl=30.0,
    result_ttl=60.0,
    generation=1,
)


@pytest.mark.parametrize(
    ("record", "lock", "may"),
    [
        (7, 7, True),
        (8, 7, False),  # the job was claimed under another lock, and this one not freed
        (7, 8, False),  # another job took the lock, which leaves the record as it was
        (7, None, False),
    ],
)
def test_a_lease_writes_only_where_record_and_lock_have_its_token(
    record: int, lock: int | None, may: bool
) -> None:
    job: Any = SimpleNamespace(status=JobStatus.RUNNING, fence=record, generation=1)
    held: Any = None if lock is None else SimpleNamespace(fence=lock, owner="host:2")
    if may:
        check_holder(LEASE, job, held, str)
    else:
        with pytest.raises(LeaseLost):
            check_holder(LEASE, job, held, str)
