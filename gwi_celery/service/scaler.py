"""KEDA's external scaler for our queues: how many workers the waiting jobs need.

A queue may be several filtered subscriptions (priorities, bindings), of which KEDA's own Pub/Sub scaler
sees one; here their sum counts. The interface is KEDA's
(https://keda.sh/docs/latest/concepts/external-scalers/), which CREMA uses for Cloud Run, too.

A trigger's metadata:

``queues``
    Names, separated by commas; the app's default queue, if left out.
``metric``
    ``depth`` (default): messages, including those that are being worked on. ``age``: seconds that
    the oldest has waited.
``target``
    How much of it is right for one worker: 5 messages, or 60 seconds, if left out.

While a queue's depth is unknown the answer is UNAVAILABLE, so that KEDA leaves the number of workers
as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gwi_celery.brokers.base import Broker
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.errors import BrokerError, ConfigurationError
from gwi_celery.text import nearest

logger = logging.getLogger(__name__)

SERVICE = "externalscaler.ExternalScaler"
#: Metric -> the default target.
TARGETS = {"depth": 5.0, "age": 60.0}
_KEYS = ("scalerAddress", "queues", "metric", "target")
_THREADS = 4

_Field = descriptor_pb2.FieldDescriptorProto
#: Message -> its fields (name, type, whether repeated), in the order of their numbers, from 1.
_MESSAGES: dict[str, list[tuple[str, Any, bool]]] = {
    "ScaledObjectRef": [
        ("name", _Field.TYPE_STRING, False),
        ("namespace", _Field.TYPE_STRING, False),
        ("scalerMetadata", "ScaledObjectRef.ScalerMetadataEntry", True),
    ],
    "IsActiveResponse": [("result", _Field.TYPE_BOOL, False)],
    "GetMetricSpecResponse": [("metricSpecs", "MetricSpec", True)],
    "MetricSpec": [
        ("metricName", _Field.TYPE_STRING, False),
        ("targetSize", _Field.TYPE_INT64, False),
        ("targetSizeFloat", _Field.TYPE_DOUBLE, False),
    ],
    "GetMetricsRequest": [
        ("scaledObjectRef", "ScaledObjectRef", False),
        ("metricName", _Field.TYPE_STRING, False),
    ],
    "GetMetricsResponse": [("metricValues", "MetricValue", True)],
    "MetricValue": [
        ("metricName", _Field.TYPE_STRING, False),
        ("metricValue", _Field.TYPE_INT64, False),
        ("metricValueFloat", _Field.TYPE_DOUBLE, False),
    ],
}


def _fields(message: Any, fields: Iterable[tuple[str, Any, bool]]) -> None:
    for number, (name, kind, several) in enumerate(fields, 1):
        label = _Field.LABEL_REPEATED if several else _Field.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if isinstance(kind, str):
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".externalscaler.{kind}"
        else:
            field.type = kind


def _messages() -> dict[str, Any]:
    """KEDA's messages, made here: a generated module would ask for one version of protobuf."""
    file = descriptor_pb2.FileDescriptorProto(
        name="externalscaler.proto", package="externalscaler", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        _fields(message, fields)
        if name == "ScaledObjectRef":
            entry = message.nested_type.add(name="ScalerMetadataEntry")
            entry.options.map_entry = True
            text = _Field.TYPE_STRING
            _fields(entry, [("key", text, False), ("value", text, False)])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"externalscaler.{name}"))
        for name in _MESSAGES
    }


pb = _messages()


@dataclass(frozen=True)
class _Trigger:
    queues: tuple[str, ...]
    metric: str
    target: float

    @property
    def name(self) -> str:
        return f"gwi-{self.metric}-{'-'.join(self.queues)}"


class Unknown(Exception):
    """A queue's depth or age is not known now; the text says why."""


class Scaler:
    """Answers KEDA from what the broker knows. Any thread may use it."""

    def __init__(self, broker: Broker, default_queue: str) -> None:
        self._broker = broker
        self._default_queue = default_queue

    def is_active(self, asked: Any) -> Any:
        """Whether there should be a worker at all."""
        trigger = self._trigger(asked.scalerMetadata)
        return pb["IsActiveResponse"](result=self._sum(trigger.queues, "depth") > 0)

    def spec(self, asked: Any) -> Any:
        """The target for one worker."""
        trigger = self._trigger(asked.scalerMetadata)
        spec = pb["MetricSpec"](
            metricName=trigger.name,
            targetSize=max(1, round(trigger.target)),
            targetSizeFloat=trigger.target,
        )
        return pb["GetMetricSpecResponse"](metricSpecs=[spec])

    def metrics(self, asked: Any) -> Any:
        """The metric's value now."""
        trigger = self._trigger(asked.scaledObjectRef.scalerMetadata)
        value = self._sum(trigger.queues, trigger.metric)
        found = pb["MetricValue"](
            metricName=asked.metricName or trigger.name,
            metricValue=round(value),
            metricValueFloat=value,
        )
        return pb["GetMetricsResponse"](metricValues=[found])

    def _trigger(self, metadata: Any) -> _Trigger:
        given = dict(metadata)
        for key in given:
            if key not in _KEYS:
                raise ConfigurationError(f"the trigger has {key!r}; {nearest(key, _KEYS)}")
        metric = given.get("metric") or "depth"
        if metric not in TARGETS:
            raise ConfigurationError(f"metric is {metric!r}; {nearest(metric, TARGETS)}")
        try:
            target = float(given.get("target") or TARGETS[metric])
        except ValueError:
            target = 0.0
        if not 0 < target < float("inf"):
            raise ConfigurationError(f"target is {given['target']!r}: write a number above 0")
        names = given.get("queues") or self._default_queue
        queues = tuple(name for name in map(str.strip, names.split(",")) if name)
        if not queues:
            raise ConfigurationError(
                f"queues is {names!r}: write names, separated by commas, or leave it out"
            )
        return _Trigger(queues, metric, target)

    def _sum(self, queues: Iterable[str], metric: str) -> float:
        """All messages of the queues, or the age of the oldest one."""
        found = [self._look(queue, metric) for queue in queues]
        return sum(found) if metric == "depth" else max(found, default=0.0)

    def _look(self, queue: str, metric: str) -> float:
        broker = self._broker
        if isinstance(broker, PubSubBroker):
            depth = broker.depth(queue)
            value = None
            if depth is not None:
                value = depth.messages if metric == "depth" else depth.oldest_age_seconds
            if value is None:
                raise Unknown(
                    f"the {metric} of queue {queue!r} is not known yet: Cloud Monitoring has not "
                    "measured all of its subscriptions, or this account may not read it "
                    "(roles/monitoring.viewer, extra monitoring)"
                )
            return float(value)
        size = broker.size(queue)
        if size is None or metric == "age":
            raise Unknown(f"this broker does not know the {metric} of queue {queue!r}")
        return float(size.ready + size.leased)


def serve(scaler: Scaler, address: str) -> tuple[grpc.Server, int]:
    """A started server and its port. ``address``: ``host:port``, port 0 for any that is free.

    Without TLS, as KEDA talks to external scalers inside its cluster, and CREMA to a sidecar.
    """
    calls: dict[str, tuple[Callable[[Any], Any], str]] = {
        "IsActive": (scaler.is_active, "ScaledObjectRef"),
        "GetMetricSpec": (scaler.spec, "ScaledObjectRef"),
        "GetMetrics": (scaler.metrics, "GetMetricsRequest"),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answering(function),
            request_deserializer=pb[asked].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, (function, asked) in calls.items()
    }
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="gwi-scaler"))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port(address)
    server.start()
    return server, port


def _answering(function: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return function(request)
        except ConfigurationError as exc:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except (Unknown, BrokerError) as exc:
            logger.warning("%s", exc)
            context.abort(grpc.StatusCode.UNAVAILABLE, str(exc))

    return answer
