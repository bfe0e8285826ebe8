"""The renewer serves all jobs of a process: none of them may hold it up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.errors import StoreUnavailable, StoreUnusable
from gwi_celery.ids import fingerprint
from gwi_celery.reliability.job import Limits, RunningJob
from gwi_celery.stores.base import (
    AttemptEnd,
    Checkpoint,
    Claimed,
    ClaimRequest,
    JobRef,
    Lease,
    LockRef,
    Store,
)
from gwi_celery.stores.sqlite import SqliteStore
from tests.machine import PATIENCE
from tests.workers import eventually

TTL = 600.0


@pytest.fixture
def store() -> Iterator[Store]:
    store = SqliteStore(None)
    yield store
    store.close()


def running(store: Store, run: str, due_in: float) -> RunningJob:
    """A job whose lease is to be renewed in so many seconds."""
    claimed = store.claim(
        ClaimRequest(
            job=JobRef("acme", "task", run),
            lock=LockRef("acme", ("run", run)),
            run_id=run,
            fingerprint=fingerprint(run),
            submission=run,
            owner="w",
            nonce=uuid4().hex,
            lease_ttl=TTL,
            result_ttl=3600,
        )
    )
    assert isinstance(claimed, Claimed)
    limits = Limits(max_checkpoint_bytes=1000, deadline=None, interrupt_on_shutdown=False)
    return RunningJob(store, claimed, limits, asked_at=time.monotonic() - TTL / 3 + due_in)


def test_a_save_that_stalls_keeps_no_other_job_from_being_renewed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, save = threading.Event(), threading.Event(), store.save

    def stalling(lease: Lease, checkpoint: Checkpoint) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return save(lease, checkpoint)

    monkeypatch.setattr(store, "save", stalling)
    stalled, other = running(store, "a", 0.0), running(store, "b", 0.2)
    saving = threading.Thread(target=stalled.checkpoint, args=("value", 1))
    saving.start()
    try:
        assert begun.wait(PATIENCE)
        stalled.start_renewing()
        other.start_renewing()
        eventually(lambda: other.renew_due() > time.monotonic() + 60, what="it is renewed")
    finally:
        go_on.set()
        saving.join()
        for job in (stalled, other):
            job.release(AttemptEnd("stopping"))
    assert stalled.renew_due() == float("inf")


def test_a_lock_that_could_not_be_released_is_released_once_the_store_answers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, release = iter([True]), store.release

    def unavailable(lease: Lease, end: AttemptEnd) -> None:
        if next(refused, False):
            raise StoreUnavailable("its quota is used up")
        release(lease, end)

    monkeypatch.setattr(store, "release", unavailable)
    job = running(store, "a", 0.0)
    job.start_renewing()
    job.release(AttemptEnd("retry"))
    job.abandon()  # as every attempt does at last
    eventually(lambda: job.renew_due() == float("inf"), what="the lock is released")
    running(store, "a", 0.0).abandon()


def test_a_lock_that_the_store_refuses_to_release_is_left_to_its_ttl(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(lease: Lease, end: AttemptEnd) -> None:
        raise StoreUnusable("the account may not write")

    monkeypatch.setattr(store, "release", lost)
    job = running(store, "a", 0.0)
    job.release(AttemptEnd("retry"))
    assert job.renew_due() == float("inf")
