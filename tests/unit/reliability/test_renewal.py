"""The renewer serves all jobs of a process: none of them may hold it up."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.errors import StoreUnavailable, StoreUnusable
from gwi_celery.ids import fingerprint
from gwi_celery.reliability import renewal
from gwi_celery.reliability.job import Bounds, RunningJob
from gwi_celery.reliability.renewal import NEVER, Renewer
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
    bounds = Bounds(max_checkpoint_bytes=1000, deadline=None, interrupt_on_shutdown=False)
    return RunningJob(store, claimed, bounds, asked_at=time.monotonic() - TTL / 3 + due_in)


def test_saves_that_stall_keep_no_other_job_from_being_renewed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = renewal._LANES
    begun, go_on, save = threading.Barrier(lanes + 1), threading.Event(), store.save

    def stalling(lease: Lease, checkpoint: Checkpoint) -> Any:
        begun.wait(PATIENCE)
        assert go_on.wait(PATIENCE)
        return save(lease, checkpoint)

    monkeypatch.setattr(store, "save", stalling)
    stalled = [running(store, f"a{n}", 0.0) for n in range(lanes)]
    other = running(store, "b", 0.2)
    saving = [threading.Thread(target=job.checkpoint, args=("value", 1)) for job in stalled]
    for thread in saving:
        thread.start()
    try:
        begun.wait(PATIENCE)
        for job in (*stalled, other):
            job.start_renewing()
        eventually(lambda: other.renew_due() > time.monotonic() + 60, what="it is renewed")
    finally:
        go_on.set()
        for thread in saving:
            thread.join()
        for job in (*stalled, other):
            job.release(AttemptEnd("stopping"))
    assert {job.renew_due() for job in stalled} == {float("inf")}


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


def test_a_renewal_that_stalls_keeps_no_other_job_from_being_renewed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, renew = threading.Event(), threading.Event(), store.renew
    stalled, other = running(store, "a", 0.0), running(store, "b", 0.2)

    def stalling(lease: Lease) -> Lease:
        if lease.job == stalled.record.job:
            begun.set()
            assert go_on.wait(PATIENCE)
        return renew(lease)

    monkeypatch.setattr(store, "renew", stalling)
    later = running(store, "c", 0.0)
    try:
        stalled.start_renewing()
        other.start_renewing()
        assert begun.wait(PATIENCE)
        later.start_renewing()  # while the first renewal is in flight
        for job in (other, later):
            eventually(
                lambda job=job: job.renew_due() > time.monotonic() + 60,
                what="it is renewed while the other stalls",
                timeout=PATIENCE / 2,
            )
        assert stalled.renew_due() < time.monotonic() + 60
    finally:
        go_on.set()
        for job in (stalled, other, later):
            job.release(AttemptEnd("stopping"))


class Renewed:
    """A job whose renewal calls ``renew``, and which is renewed once."""

    def __init__(self, renew: Callable[[], object]) -> None:
        self._renew = renew
        self._due = 0.0
        self.tries = 0

    def renew_due(self) -> float:
        return self._due

    def renew_if_idle(self) -> None:
        self.tries += 1
        try:
            self._renew()
        finally:
            self._due = NEVER


@pytest.fixture
def renewer() -> Iterator[Renewer]:
    made = Renewer()
    yield made
    for lane in made._lanes:
        lane.stop(PATIENCE)


def test_renewals_that_are_due_together_run_several_at_a_time(renewer: Renewer) -> None:
    """At 50 ms a renewal, 300 jobs would take 15 s in turn, which is longer than their TTL allows."""
    together = threading.Barrier(10)
    jobs = [Renewed(lambda: together.wait(PATIENCE)) for _ in range(300)]
    for job in jobs:
        renewer.add(job)
    eventually(lambda: all(job.renew_due() == NEVER for job in jobs), what="all are renewed")
    assert Counter(job.tries for job in jobs) == {1: 300}
    assert not together.broken


def test_a_renewal_that_ends_while_another_lane_watches_is_not_the_jobs_last(
    renewer: Renewer,
) -> None:
    go_on, again = threading.Event(), threading.Event()

    class Slow(Renewed):
        """Due again as soon as its first renewal has ended."""

        def renew_if_idle(self) -> None:
            super().renew_if_idle()
            if self.tries == 1:
                self._due = time.monotonic()
            else:
                again.set()

    first_ends = threading.Event()
    first, slow = Renewed(lambda: first_ends.wait(PATIENCE)), Slow(lambda: go_on.wait(PATIENCE))
    renewer.add(first)
    eventually(lambda: renewer._busy.get(0) is first)
    renewer.add(slow)
    eventually(lambda: renewer._busy.get(1) is slow)
    first_ends.set()
    eventually(lambda: renewer._lanes[0]._sleeps_until == NEVER, what="the first lane watches")
    go_on.set()
    assert again.wait(PATIENCE)


def test_one_job_has_one_thread_even_while_its_renewal_stalls(renewer: Renewer) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    renewer.add(Renewed(stall))
    assert begun.wait(PATIENCE)
    time.sleep(2 * renewal._LATE)
    threads = [lane._thread for lane in renewer._lanes]
    go_on.set()
    assert threads[0] is not None
    assert set(threads[1:]) == {None}


def test_a_forked_child_renews_its_own_jobs_only(renewer: Renewer) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    stalled = [Renewed(stall) for _ in range(2)]
    for job in stalled:
        renewer.add(job)
    assert begun.wait(PATIENCE)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            done = threading.Event()
            renewal.renewer().add(Renewed(done.set))
            code = 0 if done.wait(PATIENCE) and len(renewal.renewer()._jobs) == 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go_on.set()
    eventually(lambda: all(job.renew_due() == NEVER for job in stalled), what="the parent's go on")
