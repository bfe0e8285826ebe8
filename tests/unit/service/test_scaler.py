"""KEDA's external scaler, driven over gRPC as KEDA drives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import yaml

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.service.scaler import SERVICE, TARGETS, Scaler, pb, serve
from tests.pubsub.features.test_monitoring import (  # noqa: F401 fixtures
    AGE,
    COUNT,
    NOW,
    Measured,
    broker,
    measured,
    server,
)
from tests.workers import ROOT

ANSWERS = {
    "IsActive": "IsActiveResponse",
    "GetMetricSpec": "GetMetricSpecResponse",
    "GetMetrics": "GetMetricsResponse",
}
Call = Callable[..., Any]


@contextmanager
def driving(scaler: Scaler) -> Iterator[Call]:
    running, port = serve(scaler, "127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:

        def call(rpc: str, **metadata: str) -> Any:
            asked = pb["ScaledObjectRef"](name="w", namespace="default", scalerMetadata=metadata)
            if rpc == "GetMetrics":
                asked = pb["GetMetricsRequest"](scaledObjectRef=asked, metricName="m")
            stub = channel.unary_unary(
                f"/{SERVICE}/{rpc}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb[ANSWERS[rpc]].FromString,
            )
            return stub(asked, timeout=10)

        yield call
    running.stop(None)


def test_the_messages_are_kedas() -> None:
    """By their bytes: field 3 is a map, field 2 a nested message's text."""
    asked = pb["ScaledObjectRef"](name="w", namespace="d", scalerMetadata={"a": "b"})
    assert asked.SerializeToString() == b"\n\x01w\x12\x01d\x1a\x06\n\x01a\x12\x01b"
    value = pb["MetricValue"](metricName="m", metricValue=1, metricValueFloat=1.5)
    assert value.SerializeToString() == b"\n\x01m\x10\x01\x19" + b"\x00\x00\x00\x00\x00\x00\xf8?"


def test_the_sum_of_a_queues_filtered_subscriptions_counts(
    server: Any,  # noqa: F811
    measured: Measured,  # noqa: F811
    broker: Any,  # noqa: F811
) -> None:
    queue = broker(priority_levels=(0, 5))
    with driving(Scaler(queue, "celery")) as call:
        with pytest.raises(grpc.RpcError) as unknown:
            call("IsActive")
        assert unknown.value.code() is grpc.StatusCode.UNAVAILABLE, (
            "KEDA leaves the number as it is"
        )
        assert "not known yet" in unknown.value.details()
        measured.points = {
            (COUNT, "gwi-celery"): [(0, NOW)],
            (COUNT, "gwi-celery~p5"): [(0, NOW)],
        }
        assert not call("IsActive").result, "down to zero"
        measured.points[COUNT, "gwi-celery"] = [(3, NOW)]
        measured.points[COUNT, "gwi-celery~p5"] = [(9, NOW)]
        measured.points[AGE, "gwi-celery"] = [(20, NOW)]
        measured.points[AGE, "gwi-celery~p5"] = [(95, NOW)]
        assert call("IsActive").result
        [value] = call("GetMetrics").metricValues
        assert (value.metricValue, value.metricValueFloat) == (12, 12.0)
        [value] = call("GetMetrics", metric="age").metricValues
        assert value.metricValueFloat == 95.0
        [spec] = call("GetMetricSpec", metric="age", target="30").metricSpecs
        assert (spec.metricName, spec.targetSize) == ("gwi-age-celery", 30)


def test_the_embedded_broker_is_measured_at_once() -> None:
    queue = EmbeddedBroker(None)
    for name in ("a", "b"):
        queue.declare_queue(QueueSpec(name))
        queue.publish("", name, OutgoingMessage(b"x"))
    with driving(Scaler(queue, "a")) as call:
        [value] = call("GetMetrics", queues="a, b").metricValues
        assert value.metricValue == 2
        assert call("IsActive").result
        [spec] = call("GetMetricSpec").metricSpecs
        assert spec.targetSizeFloat == TARGETS["depth"]
        queue.purge("a")
        assert not call("IsActive").result
        for wrong in (
            *({"metrik": "age"}, {"metric": "speed"}, {"target": "many"}, {"target": "-1"}),
            {"queues": " , "},
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call("GetMetricSpec", **wrong)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, wrong
    queue.close()


@pytest.mark.parametrize("file", ["keda.yaml", "crema.yaml", "crema-levels.yaml"])
def test_the_configurations_triggers_are_understood(file: str) -> None:
    found = []
    for document in yaml.safe_load_all((ROOT / "infra" / "autoscaling" / file).read_text()):
        if document["kind"] == "CremaConfig":
            for entry in document["spec"]["scaledObjects"]:
                assert "/workerpools/" in entry["spec"]["scaleTargetRef"]["name"]
                found.append(entry["spec"])
        elif document["kind"] == "ScaledObject":
            found.append(document["spec"])
    assert found
    scaler = Scaler(EmbeddedBroker(None), "celery")
    for spec in found:
        assert spec["minReplicaCount"] == 0
        metrics = set()
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if trigger["type"] == "external":
                asked = pb["ScaledObjectRef"](scalerMetadata=metadata)
                metrics.add(scaler.spec(asked).metricSpecs[0].metricName.split("-")[1])
            else:
                metrics.add({"NumUndeliveredMessages": "depth"}.get(metadata["mode"], "age"))
        assert metrics == {"depth", "age"}
