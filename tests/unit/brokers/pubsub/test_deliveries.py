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
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable, NotFound


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


def _leased(deliveries: Deliveries, count: int) -> list[_Delivery]:
    made = [_Delivery("q", f"s {n}", str(n), b"", {}, 1, 0.0, 0, 60.0) for n in range(count)]
    deliveries.leases.update({each.ack_id: time.monotonic() + 60 for each in made})
    return made


class _Refusing:
    """A client whose calls are all refused."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def call(self, rpc: str, request: Any, resource: str) -> Any:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [BrokerUnusable("may not"), BrokerUnavailable("it is down")])
def test_a_refusal_that_no_single_lease_causes_is_raised_and_loses_none(
    deliveries: Deliveries, error: BrokerError
) -> None:
    """Asked again for ever smaller groups, 1000 leases would cost 1999 refused calls."""
    deliveries._client = client = _Refusing(error)  # type: ignore[assignment]
    held = _leased(deliveries, 1000)
    with pytest.raises(type(error)):
        deliveries.extend(held, 60.0)
    assert client.calls == 1
    assert len(deliveries.leases) == 1000


def test_all_leases_of_a_deleted_subscription_are_lost_by_one_call(deliveries: Deliveries) -> None:
    deliveries._client = client = _Refusing(NotFound("s"))  # type: ignore[assignment]
    held = _leased(deliveries, 1000)
    assert deliveries.extend(held, 60.0) == held
    assert client.calls == 1
    assert not deliveries.leases
