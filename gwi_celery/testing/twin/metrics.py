"""The part of Cloud Monitoring that measures backlogs: ``ListTimeSeries`` of two metrics.

https://cloud.google.com/monitoring/api/metrics_gcp_p_z#gcp-pubsub: each subscription is measured every 60
seconds, and what was measured can be read up to 120 seconds later. It needs the package
google-cloud-monitoring, which its clients have.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc

from gwi_celery.testing.twin import checks
from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.world import World

_SERVICE, _RPC = "google.monitoring.v3.MetricService", "ListTimeSeries"
_PREFIX = "pubsub.googleapis.com/subscription/"
_FILTER = re.compile(
    rf'\s*metric\.type\s*=\s*"{_PREFIX}(num_undelivered_messages|oldest_unacked_message_age)"'
    r"\s+AND\s+resource\.labels\.subscription_id\s*=\s*"
    r'(?:one_of\((?P<several>[^()]*)\)|"(?P<one>[^"]*)")\s*'
)
#: Seconds between two looks at whether it is time to measure.
_LOOK = 0.05


@dataclass(frozen=True)
class _Measured:
    at: float
    num_undelivered_messages: int
    oldest_unacked_message_age: int


class Metrics:
    """Measures all subscriptions, and answers with the last measurement that can be read already."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: (time, what was measured by path), the oldest first.
        self._measured: deque[tuple[float, dict[str, _Measured]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def clear(self) -> None:
        self._measured.clear()

    async def _run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK)
            if time.monotonic() - last >= self._world.behaviour.measured_every:
                last = time.monotonic()
                self.measure(time.time())

    def measure(self, now: float) -> None:
        found = {
            path: _Measured(now, len(waiting), int(now - min(waiting, default=now)))
            for path, subscription in self._world.subscriptions.items()
            for waiting in [
                [e.published for e in subscription.backlog.entries.values() if not e.done]
            ]
        }
        self._measured.append((now, found))

    def readable(self, now: float) -> dict[str, _Measured]:
        """The newest measurement that can be read by then, by path."""
        until = now - self._world.behaviour.measured_late
        while len(self._measured) > 1 and self._measured[1][0] <= until:
            self._measured.popleft()
        at, found = self._measured[0] if self._measured else (now, {})
        return found if at <= until else {}

    def handler(self) -> Any:
        """gRPC's handler. It parses messages itself, as their classes take long to import."""
        method = grpc.unary_unary_rpc_method_handler(self._answer)
        return grpc.method_handlers_generic_handler(_SERVICE, {_RPC: method})

    async def _answer(self, data: bytes, context: Any) -> bytes:
        from google.cloud import monitoring_v3

        types: Any = monitoring_v3
        request = types.ListTimeSeriesRequest.deserialize(data)
        self._world.costs.rpcs[_RPC] += 1
        try:
            checks.credentials(self._world.behaviour)
            series = self._series(types, request)
        except Refused as exc:
            await context.abort(getattr(grpc.StatusCode, exc.status), str(exc))
        response = types.ListTimeSeriesResponse
        return bytes(response.serialize(response(time_series=series)))

    def _series(self, types: Any, request: Any) -> list[Any]:
        if not self._world.rights.has("monitoring.timeSeries.list", request.name):
            text = f"Permission monitoring.timeSeries.list denied on {request.name}."
            raise Refused(text, "PERMISSION_DENIED")
        wanted = _FILTER.fullmatch(request.filter)
        if wanted is None:
            raise Refused("The twin knows two metrics of subscriptions by their ids, and no more.")
        metric, readable = wanted[1], self.readable(time.time())
        several = re.findall(r'"([^"]*)"', wanted["several"] or "")
        found = []
        for id in several or [wanted["one"]]:
            measured = readable.get(f"{request.name}/subscriptions/{id}")
            if measured is None or measured.at < request.interval.start_time.timestamp():
                continue
            end = {"seconds": int(measured.at), "nanos": int(measured.at % 1 * 1e9)}
            value = {"int64_value": getattr(measured, metric)}
            point = {"interval": {"end_time": end}, "value": value}
            found.append(
                types.TimeSeries(
                    metric={"type": _PREFIX + metric},
                    resource={"type": "pubsub_subscription", "labels": {"subscription_id": id}},
                    points=[point],
                )
            )
        return found
