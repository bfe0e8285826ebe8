"""Any sequence of claims, ends, silences and changes keeps to the limits, and every place is free again.

1. never more leases of a limit can write than it allows, or than it allowed when they began
2. a claim waits only if a limit has no place that is free, or whose holder fell silent
3. a holder whose place was taken has lost its lease, and frees nobody else's
4. of a rate no more begin in any such time than it allows
5. what waits holds no place of any other limit
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gwi_celery.errors import LeaseLost
from gwi_celery.stores.base import Claimed, ClaimRequest, JobRef, Lease, Limited, LockRef
from gwi_celery.stores.limits import LimitRef, LimitSetting, Rate
from gwi_celery.stores.sqlite import SqliteStore
from tests.clocks import FakeClock
from tests.contract.stores import success
from tests.machine import examples

TTL, PERIOD = 8.0, 16.0
AT_ONCE = LimitRef("{tenant_id}", {"tenant_id": "acme"}, max_running=2)
ALL = LimitRef("all", {}, max_running=3)
RATE = LimitRef("often", {}, rate=Rate(4, PERIOD))
LIMITS = [(AT_ONCE,), (ALL,), (AT_ONCE, ALL), (RATE,), (ALL, RATE), (RATE, AT_ONCE, ALL), ()]


class LimitsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = SqliteStore(None, clock=self.clock)
        self.numbers = itertools.count()
        #: Of each claim that was granted and hasn't been ended by its holder.
        self.leases: list[tuple[Lease, tuple[LimitRef, ...]]] = []
        self.began: dict[str, list[float]] = defaultdict(list)
        #: What AT_ONCE allows now, and what it allowed at most while one that runs began.
        self.allows = 2
        self.most = 2

    def request(self, limits: tuple[LimitRef, ...]) -> ClaimRequest:
        n = next(self.numbers)
        return ClaimRequest(
            job=JobRef("acme", "t", f"k{n}"),
            lock=LockRef("acme", (f"k{n}",)),
            run_id=None,
            fingerprint="f",
            submission="s",
            owner="host:1",
            nonce=f"n{n}",
            lease_ttl=TTL,
            result_ttl=1000.0,
            limits=limits,
        )

    def live(self, limit: LimitRef, *, late: bool = False) -> int:
        """Leases that hold the limit, by their locks: those that run out count as well with ``late``."""
        count = 0
        for lease, limits in self.leases:
            lock = self.store.get_lock(lease.lock)
            if limit in limits and lock is not None and lock.fence == lease.fence:
                count += late or not lock.expired
        return count

    def allowed(self, limit: LimitRef) -> int:
        if limit is AT_ONCE:
            return self.allows
        assert limit.max_running is not None
        return limit.max_running

    def is_full(self, limit: LimitRef) -> bool:
        if limit.rate is not None:
            since = [at for at in self.began[limit.id] if at > self.clock.time() - PERIOD]
            return len(since) >= limit.rate.amount
        return self.live(limit) >= self.allowed(limit)

    @rule(limits=st.sampled_from(LIMITS))
    def claim(self, limits: tuple[LimitRef, ...]) -> None:
        full = [limit for limit in limits if self.is_full(limit)]
        before = {each.id: len(self.store.list_places(each.id)) for each in limits}
        request = self.request(limits)
        answer = self.store.claim(request)
        if full:
            assert isinstance(answer, Limited), answer
            assert answer.limit.id in {limit.id for limit in full}
            assert answer.retry_after > 0
            after = {each.id: len(self.store.list_places(each.id)) for each in limits}
            assert after == before
            return
        assert isinstance(answer, Claimed), answer
        self.leases.append((answer.lease, limits))
        for limit in limits:
            self.began[limit.id].append(self.clock.time())

    @precondition(lambda self: self.leases)
    @rule(n=st.integers(0, 50), how=st.sampled_from(["renew", "finish", "release", "force"]))
    def use_a_lease(self, n: int, how: str) -> None:
        lease, limits = self.leases[n % len(self.leases)]
        lock = self.store.get_lock(lease.lock)
        mine = lock is not None and lock.fence == lease.fence
        others = [each for each, _ in self.leases if each is not lease]
        held = [self.store.get_lock(each.lock) for each in others]
        try:
            match how:
                case "renew":
                    self.store.renew(lease)
                case "finish":
                    self.store.finish(lease, success())
                case "release":
                    self.store.release(lease)
                case _:
                    self.store.force_release(lease.lock)
            assert mine or how in ("release", "force")
        except LeaseLost:
            assert not mine
        assert [self.store.get_lock(each.lock) for each in others] == held
        if how != "renew" or not mine:
            self.leases.remove((lease, limits))

    @rule(seconds=st.sampled_from([0.5, 4.0, 8.0, 9.0, 17.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def clean_up(self) -> None:
        self.store.cleanup()

    @rule(most=st.integers(1, 4))
    def set_another(self, most: int) -> None:
        setting = LimitSetting("{tenant_id}", {}, most, None, time.time(), "ops")
        self.store.set_limit(setting)
        self.most, self.allows = max(self.most, most, self.live(AT_ONCE, late=True)), most

    @invariant()
    def no_more_can_write_than_are_allowed(self) -> None:
        assert self.live(ALL, late=True) <= 3
        assert self.live(AT_ONCE, late=True) <= self.most
        for times in self.began.values():
            assert times == sorted(times)
        starts = self.began[RATE.id]
        assert all(b - a >= PERIOD for a, b in zip(starts, starts[4:], strict=False))
        # What is listed is what holds.
        for limit in (ALL, AT_ONCE):
            assert len(self.store.list_places(limit.id)) == self.live(limit)

    def teardown(self) -> None:
        """In the end every place is free again."""
        self.clock.advance(PERIOD * 2)
        for limit in (AT_ONCE, ALL):
            for _ in range(self.allowed(limit)):
                assert isinstance(self.store.claim(self.request((limit,))), Claimed)
            assert isinstance(self.store.claim(self.request((limit,))), Limited)
        self.store.close()


def test_any_sequence_keeps_to_the_limits() -> None:
    run_state_machine_as_test(
        LimitsMachine,
        settings=settings(
            max_examples=examples(40),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
