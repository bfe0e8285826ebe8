"""How deliveries are settled while Pub/Sub, or part of it, is unavailable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gwi_celery.brokers.pubsub.deliveries import Deliveries, _Delivery
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.errors import BrokerUnavailable


class _Acks:
    def __init__(self) -> None:
        self.nacked: list[tuple[str, float]] = []

    def nack(self, subscription: str, ack_id: str, seconds: float, until: float, **_: Any) -> None:
        self.nacked.append((ack_id, seconds))


class _Jobs:
    def run(self, job: Callable[[], object]) -> None:
        job()


def unavailable(*args: Any, **kwargs: Any) -> Any:
    raise BrokerUnavailable("it is down")


class _Publisher:
    made = staticmethod(unavailable)


@pytest.fixture
def acks() -> _Acks:
    return _Acks()


@pytest.fixture
def deliveries(acks: _Acks) -> Deliveries:
    unused: Any = None
    fakes: Any = (_Publisher(), acks, _Jobs())
    return Deliveries(unused, parse("pubsub://p", {}, {}), unused, *fakes, unused)


@pytest.fixture
def delivery(deliveries: Deliveries) -> _Delivery:
    deliveries.leases["s a"] = time.monotonic() + 60
    return _Delivery("q", "s a", "1", b"", {}, 1, 0.0, 0, 60.0)


def test_a_waiting_message_that_can_not_be_published_anew_is_deferred_once_more(
    deliveries: Deliveries, delivery: _Delivery, acks: _Acks
) -> None:
    """Left to its lease it would be redelivered at once, and each time count as a delivery."""
    deliveries._settle_later(delivery, partial(deliveries._renew, delivery, time.time() + 3600))
    assert acks.nacked == [("a", 600)]
    assert deliveries.any_deferred([delivery.ack_id])
    assert not deliveries.leases


def test_what_can_not_be_settled_now_is_left_to_its_lease(
    deliveries: Deliveries, delivery: _Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        deliveries._settle_later(delivery, unavailable)
    assert not deliveries.leases, "else no ack would be known as the last one's"
    [record] = caplog.records
    assert record.exc_info is None
    assert "message 1 of queue 'q' can't be settled now" in record.getMessage()


def test_outdated_entries_of_deferred_messages_are_dropped(
    deliveries: Deliveries, delivery: _Delivery
) -> None:
    deliveries._many_deferred = 2
    deliveries._deferred = {"past": 0.0, "later": time.monotonic() + 60}
    deliveries.release(delivery, 5.0)
    assert deliveries._deferred.keys() == {"later", delivery.ack_id}
    assert deliveries._many_deferred > 2, "the rest is not gone through for each message"


def test_nothing_to_publish_now_is_nothing_to_do(deliveries: Deliveries) -> None:
    """Every one that an operator asked for was handed out meanwhile."""
    deliveries.publish_now([])
