"""The Pub/Sub transport: Celery's queues on Google Cloud Pub/Sub.

Features
========
* Type: Virtual
* Supports Direct: Yes
* Supports Topic: Yes
* Supports Fanout: Yes
* Supports Priority: Yes, with ``priority_levels``
* Supports TTL: Yes
* Supports delayed delivery: Yes (``eta`` and ``countdown`` are kept by Pub/Sub)

Connection String
=================
``pubsub://my-project``; ``pubsub://host:port/my-project`` for a regional endpoint
(``europe-west1-pubsub.googleapis.com:443``) or an emulator. Without a host, the emulator that
``PUBSUB_EMULATOR_HOST`` names is used, if any. Credentials are the environment's; an emulator needs none.

Transport Options
=================
Those of :class:`gwi_celery.brokers.pubsub.options.PubSubOptions`, and ``max_lease_seconds``: longest
time a lease is extended, seconds (default: as long as the task runs). All but the latter may also stand
in the URL: ``pubsub://my-project?lease_seconds=60``.
"""

from __future__ import annotations

from typing import Any

import grpc

from gwi_celery.brokers.base import Broker
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.transport import base, control

control.prepare_workers()


class Transport(base.Transport):
    driver_type = "pubsub"
    driver_name = "grpc"

    def open_broker(self, url: str, options: dict[str, Any]) -> Broker:
        return PubSubBroker(parse(url, options))

    def driver_version(self) -> str:
        version: str = grpc.__version__
        return version
