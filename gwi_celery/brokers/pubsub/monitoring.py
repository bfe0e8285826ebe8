"""Queue depths from Cloud Monitoring: Pub/Sub itself can't tell.

Pub/Sub measures each subscription every 60 seconds, and a measurement can be read up to two minutes
later (https://cloud.google.com/monitoring/api/metrics_gcp_p_z#gcp-pubsub). If any of a queue's
subscriptions has no measurement the depth is unknown: the sum of the others would be wrong.

Needs the extra ``monitoring``, and the role ``roles/monitoring.viewer`` on the project.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from gwi_celery.gcp import fork_gate
from gwi_celery.gcp.process import PerProcess

logger = logging.getLogger(__name__)

_METRIC = "pubsub.googleapis.com/subscription/"
#: Seconds: the newest measurement is at most this old; older ones are of deleted subscriptions.
_WINDOW = 300.0


@dataclass(frozen=True)
class QueueDepth:
    """The messages in a queue, including leased ones."""

    messages: int
    #: Seconds since the oldest of them was published: 0 if there are none, None if not known.
    oldest_age_seconds: float | None
    #: Seconds since the epoch; of the least recent, if several subscriptions were measured.
    measured_at: float


@dataclass(frozen=True)
class _Point:
    value: float
    at: float


def connect() -> Any:
    """Google's client. Raises ImportError, or its own error for missing credentials."""
    from google.cloud import monitoring_v3

    return monitoring_v3.MetricServiceClient()


def _connect_to_twin(endpoint: str) -> Any:
    from google.cloud.monitoring_v3.services import metric_service

    transport: Any = metric_service.transports.MetricServiceGrpcTransport
    channel = grpc.insecure_channel(endpoint, [("grpc.enable_http_proxy", 0)])
    return metric_service.MetricServiceClient(transport=transport(channel=channel))


def _disconnect(client: Any) -> None:
    client.transport.close()


class Monitoring:
    """Reads measurements. Any thread may use it; a forked child gets a client of its own.

    Args:
        timeout: Seconds that one call may take.
        twin: Endpoint of :mod:`gwi_celery.testing.twin`, which measures too.
    """

    def __init__(self, timeout: float, twin: str = "") -> None:
        self._timeout = timeout
        self._client: PerProcess[Any] = PerProcess(
            partial(_connect_to_twin, twin) if twin else connect, _disconnect
        )
        #: Causes that were logged.
        self._warned: set[str] = set()

    def depth(self, subscriptions: Iterable[str]) -> QueueDepth | None:
        """Depth of one queue, by the paths of its subscriptions; None if unknown."""
        by_project: dict[str, list[str]] = {}
        for path in subscriptions:
            _, project, _, id = path.split("/")
            by_project.setdefault(project, []).append(id)
        waiting: list[_Point] = []
        ages: list[_Point | None] = []
        for project, ids in by_project.items():
            counts = self._newest(project, "num_undelivered_messages", ids)
            if counts is None or counts.keys() != set(ids):
                return None
            waiting += counts.values()
            busy = [id for id in ids if counts[id].value > 0]
            oldest = self._newest(project, "oldest_unacked_message_age", busy) if busy else {}
            ages += [(oldest or {}).get(id) for id in busy]
        if not waiting:
            return None
        known = [age.value for age in ages if age is not None]
        return QueueDepth(
            messages=int(sum(point.value for point in waiting)),
            oldest_age_seconds=max(known, default=0.0) if len(known) == len(ages) else None,
            measured_at=min(point.at for point in waiting),
        )

    def _newest(self, project: str, metric: str, ids: list[str]) -> dict[str, _Point] | None:
        """Subscription id -> its newest measurement, if any; None if they can't be read."""
        quoted = ", ".join(f'"{id}"' for id in ids)
        now = time.time()
        request = {
            "name": f"projects/{project}",
            "filter": (
                f'metric.type = "{_METRIC}{metric}" AND '
                f"resource.labels.subscription_id = one_of({quoted})"
            ),
            "interval": {
                "start_time": {"seconds": int(now - _WINDOW)},
                "end_time": {"seconds": int(now) + 1},
            },
            "view": "FULL",
        }
        try:
            with fork_gate.call():
                answer = self._client.get().list_time_series(
                    request=request, retry=None, timeout=self._timeout
                )
                return _read(answer)
        except ImportError:
            self._warn_once(
                "missing",
                "queue depths are not known: google-cloud-monitoring is not installed; run "
                "`pip install 'gwi-celery[monitoring]'`",
            )
        except Exception as exc:  # many foreign kinds; none may fail the caller
            self._warn_once(
                f"{project} {type(exc).__name__}",
                f"queue depths of project {project} are not known: {exc}; reading them needs "
                f"roles/monitoring.viewer, by `gcloud projects add-iam-policy-binding {project} "
                "--member=serviceAccount:NAME --role=roles/monitoring.viewer`",
            )
        return None

    def _warn_once(self, cause: str, text: str) -> None:
        """Log each cause once: depths are polled, and an error's text may differ each time."""
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning("%s", text)

    def close(self) -> None:
        self._client.close()


def _read(series: Iterable[Any]) -> dict[str, _Point]:
    newest: dict[str, _Point] = {}
    for one in series:
        id = one.resource.labels.get("subscription_id")
        for point in one.points:
            kind = type(point.value).pb(point.value).WhichOneof("value")
            if kind not in ("int64_value", "double_value"):
                continue
            read = _Point(float(getattr(point.value, kind)), point.interval.end_time.timestamp())
            if id not in newest or read.at > newest[id].at:
                newest[id] = read
    return newest
