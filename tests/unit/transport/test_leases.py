"""The thread that keeps leases alive: it survives errors, and knows what it lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection

from gwi_celery.brokers.base import Delivery, OutgoingMessage
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import BrokerUnavailable, ConfigurationError
from gwi_celery.transport.leases import LEASE_PROPERTY, LeaseKeeper, message_lease_lost
from tests.machine import PATIENCE
from tests.workers import eventually


class Watched:
    """A real broker whose extensions are counted, and may fail or come too late."""

    def __init__(self, fail_first: int = 0) -> None:
        self.broker = EmbeddedBroker(None, lease_seconds=0.3)
        self.fail = fail_first
        self.extended = threading.Semaphore(0)
        self.calls: list[int] = []

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        self.calls.append(len(deliveries))
        if self.fail:
            self.fail -= 1
            raise BrokerUnavailable("for a moment")
        try:
            return self.broker.extend(deliveries, seconds)
        finally:
            self.extended.release()

    def deliver(self, count: int = 1) -> tuple[Any, list[Delivery]]:
        receiver = self.broker.receiver()
        for n in range(count):
            self.broker.publish("", "q", OutgoingMessage(b"%d" % n))
        return receiver, receiver.poll("q", count)


@pytest.fixture
def keepers() -> Iterator[list[LeaseKeeper]]:
    made: list[LeaseKeeper] = []
    yield made
    for keeper in made:
        keeper.stop()


def test_leases_are_extended_for_as_long_as_they_are_kept(keepers: list[LeaseKeeper]) -> None:
    watched = Watched()
    receiver, deliveries = watched.deliver(3)
    keeper = LeaseKeeper(watched)  # type: ignore[arg-type] # only extend is asked of it
    keepers.append(keeper)
    for delivery in deliveries:
        keeper.keep(delivery)
    for _ in range(6):  # a good deal longer than one lease
        assert watched.extended.acquire(timeout=PATIENCE)
    assert receiver.poll("q", 10) == [], "nobody else got them"
    for delivery in deliveries:
        keeper.drop(delivery)
    assert eventually(lambda: receiver.poll("q", 1)), "dropped, a lease runs out"


def test_the_thread_survives_errors(keepers: list[LeaseKeeper]) -> None:
    watched = Watched(fail_first=2)
    receiver, (delivery,) = watched.deliver()
    keeper = LeaseKeeper(watched)  # type: ignore[arg-type] # only extend is asked of it
    keepers.append(keeper)
    keeper.keep(delivery)
    assert watched.extended.acquire(timeout=PATIENCE)
    assert len(watched.calls) >= 3
    assert receiver.poll("q", 1) == [], "it was extended before the lease was over"


def test_a_lost_lease_is_known_and_no_longer_extended(keepers: list[LeaseKeeper]) -> None:
    watched = Watched()
    _, (lost, kept) = watched.deliver(2)
    keeper = LeaseKeeper(watched)  # type: ignore[arg-type] # only extend is asked of it
    keepers.append(keeper)
    watched.broker.ack([lost])
    requests = [
        SimpleNamespace(properties={LEASE_PROPERTY: keeper.keep(delivery)})
        for delivery in (lost, kept)
    ]
    eventually(lambda: message_lease_lost(requests[0]))
    assert not message_lease_lost(requests[1])
    eventually(lambda: watched.calls[-1] == 1)


def test_a_lease_can_be_bounded(keepers: list[LeaseKeeper]) -> None:
    watched = Watched()
    receiver, (delivery,) = watched.deliver()
    keeper = LeaseKeeper(watched, max_seconds=0.35)  # type: ignore[arg-type] # as above
    keepers.append(keeper)
    keeper.keep(delivery)
    again = eventually(lambda: receiver.poll("q", 1))
    assert again[0].deliveries == 2  # type: ignore[index]


def test_a_broker_that_stays_unavailable_is_one_line_and_not_one_each_second(
    keepers: list[LeaseKeeper], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gwi_celery.transport.leases._RETRY", 0.02)
    watched = Watched(fail_first=12)
    receiver, (delivery,) = watched.deliver()
    keeper = LeaseKeeper(watched)  # type: ignore[arg-type] # only extend is asked of it
    keepers.append(keeper)
    keeper.keep(delivery)
    assert watched.extended.acquire(timeout=PATIENCE)
    told = [r for r in caplog.records if "could not extend" in r.getMessage()]
    assert 1 <= len(told) <= 5, "at 0, 0.02, 0.06, 0.14, 0.3 s"
    assert all("BrokerUnavailable: for a moment" in r.getMessage() for r in told)
    assert not any(r.exc_info for r in told)
    receiver.close()


def test_a_longest_lease_that_is_no_number_is_refused_on_connecting() -> None:
    """The lease keeper would find out, and extend no lease at all."""
    options = {"max_lease_seconds": "soon"}
    with (
        Connection("embedded://:memory:/leases", transport_options=options) as connection,
        pytest.raises(ConfigurationError, match="max_lease_seconds"),
    ):
        connection.connect()
