"""Queue depth by Google's real client and a small server; None wherever it can't be known."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import monitoring_v3
from google.cloud.monitoring_v3.services.metric_service.transports import (
    MetricServiceGrpcTransport,
)

from gwi_celery.brokers.pubsub import monitoring
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.monitoring import QueueDepth
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.gcp import process
from tests.pubsub.features.answering import Server, serving
from tests.pubsub.features.conftest import declare

COUNT, AGE = "num_undelivered_messages", "oldest_unacked_message_age"
NOW = 1_800_000_000


class Measured:
    """Answers ListTimeSeries from ``points``: (metric, subscription) -> [(value, time)]."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str], list[tuple[int | float, int]]] = {}
        self.requests: list[Any] = []

    def answer(self, data: bytes) -> bytes:
        request = monitoring_v3.ListTimeSeriesRequest.deserialize(data)
        self.requests.append(request)
        found = re.fullmatch(
            r'metric\.type = "pubsub\.googleapis\.com/subscription/(\w+)" AND '
            r"resource\.labels\.subscription_id = one_of\((.*)\)",
            request.filter,
        )
        assert found is not None, request.filter
        series = []
        for id in re.findall(r'"([^"]*)"', found[2]):
            points = [
                {
                    "interval": {"end_time": {"seconds": at}},
                    "value": {("int64_value" if isinstance(v, int) else "double_value"): v},
                }
                for v, at in self.points.get((found[1], id), [])
            ]
            if points:
                resource = {"type": "pubsub_subscription", "labels": {"subscription_id": id}}
                series.append({"resource": resource, "points": points})
        made = monitoring_v3.ListTimeSeriesResponse(time_series=series)
        return monitoring_v3.ListTimeSeriesResponse.serialize(made)


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def server(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Cloud Monitoring, to which Google's own client goes."""
    with serving({"ListTimeSeries": measured.answer}) as serving_:

        def connect() -> Any:
            channel = grpc.insecure_channel(serving_.endpoint)
            return monitoring_v3.MetricServiceClient(
                transport=MetricServiceGrpcTransport(channel=channel)
            )

        monkeypatch.setattr(monitoring, "connect", connect)
        yield serving_


@pytest.fixture
def broker() -> Iterator[Callable[..., PubSubBroker]]:
    """Makes brokers that are Google's own by their URL; nothing of Pub/Sub is called."""
    made = []

    def make(**options: Any) -> PubSubBroker:
        broker = PubSubBroker(parse("pubsub://p", {"mode": "provisioned", **options}, environ={}))
        made.append(broker)
        return broker

    yield make
    for one in made:
        one.close()


Make = Callable[..., PubSubBroker]


def test_the_newest_measurement_counts(server: Server, measured: Measured, broker: Make) -> None:
    measured.points = {
        (COUNT, "gwi-q"): [(7, NOW), (9, NOW - 60)],
        (AGE, "gwi-q"): [(30, NOW - 60), (42, NOW)],
    }
    assert broker().depth("q") == QueueDepth(7, 42.0, NOW)
    first = measured.requests[0]
    assert first.name == "projects/p"
    age = time.time() - first.interval.start_time.timestamp()
    assert 290 < age < 400, "what is older tells of what is gone"
    assert server.calls["ListTimeSeries"] == 2


def test_an_empty_queue_is_zero(server: Server, measured: Measured, broker: Make) -> None:
    measured.points = {(COUNT, "gwi-q"): [(0, NOW)]}
    assert broker().depth("q") == QueueDepth(0, 0.0, NOW)
    assert server.calls["ListTimeSeries"] == 1


def test_levels_are_added_up(server: Server, measured: Measured, broker: Make) -> None:
    measured.points = {
        (COUNT, "gwi-q"): [(1, NOW)],
        (COUNT, "gwi-q~p5"): [(2, NOW - 30)],
        (COUNT, "gwi-q~p9"): [(0, NOW)],
        (AGE, "gwi-q"): [(5.5, NOW)],
        (AGE, "gwi-q~p5"): [(3, NOW)],
    }
    levels = broker(priority_levels=[0, 5, 9])
    assert levels.depth("q") == QueueDepth(3, 5.5, NOW - 30)
    del measured.points[AGE, "gwi-q~p5"]
    assert levels.depth("q") == QueueDepth(3, None, NOW - 30), "the oldest may be that one"
    del measured.points[COUNT, "gwi-q~p9"]
    assert levels.depth("q") is None, "the sum of the others would be wrong"


def test_a_subscription_of_another_project(
    server: Server, measured: Measured, broker: Make
) -> None:
    measured.points = {(COUNT, "s"): [(1, NOW)], (AGE, "s"): [(1, NOW)]}
    mapped = broker(queues={"q": {"subscription": "projects/other/subscriptions/s"}})
    assert mapped.depth("q") == QueueDepth(1, 1.0, NOW)
    assert {request.name for request in measured.requests} == {"projects/other"}


def test_nothing_measured_yet(server: Server, broker: Make) -> None:
    assert broker().depth("q") is None


def test_values_of_another_kind_are_none(server: Server, broker: Make) -> None:
    series = {
        "resource": {"labels": {"subscription_id": "gwi-q"}},
        "points": [{"interval": {"end_time": {"seconds": NOW}}, "value": {"bool_value": True}}],
    }
    made = monitoring_v3.ListTimeSeriesResponse(time_series=[series])
    server.answers["ListTimeSeries"] = monitoring_v3.ListTimeSeriesResponse.serialize(made)
    assert broker().depth("q") is None


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,
    ],
    ids=lambda code: code.name,
)
def test_a_refusal_is_none_and_is_told_once(
    server: Server, broker: Make, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["ListTimeSeries"] = (code, "the server refuses")
    asking = broker()
    with caplog.at_level(logging.WARNING):
        assert (asking.depth("q"), asking.depth("q")) == (None, None)
    [record] = caplog.records
    assert "the server refuses" in record.getMessage()
    assert "gcloud projects add-iam-policy-binding p " in record.getMessage()


def test_without_the_library(
    broker: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.monitoring_v3", None)
    monkeypatch.delattr("google.cloud.monitoring_v3")
    assert broker().depth("q") is None
    assert "pip install 'gwi-celery[monitoring]'" in caplog.text


def test_without_credentials(broker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> Any:
        raise DefaultCredentialsError("none were found")

    monkeypatch.setattr(monitoring, "connect", connect)
    assert broker().depth("q") is None


def test_on_an_emulator_it_is_none(
    connect: Callable[..., PubSubBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> Any:
        raise AssertionError("nobody to ask")

    monkeypatch.setattr(monitoring, "connect", never)
    broker = connect()
    declare(broker, "q")
    assert broker.depth("q") is None


def test_a_forked_child_has_a_client_of_its_own(
    server: Server, measured: Measured, broker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.points = {(COUNT, "gwi-q"): [(0, NOW)]}
    asking = broker()
    assert asking.depth("q") is not None
    before = asking.operating._monitoring._client.get()
    monkeypatch.setattr(
        asking.operating._monitoring._client, "_made", (-1, before)
    )  # as if in the child
    assert asking.depth("q") is not None
    assert asking.operating._monitoring._client.get() is not before
    assert before in process._inherited, "kept, neither used nor closed"
    before.transport.close()
    process._inherited.remove(before)
