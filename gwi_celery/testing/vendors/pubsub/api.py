"""The Pub/Sub vendor's node."""

from __future__ import annotations

from pytest_celery import CeleryTestBroker


class PubSubTestBroker(CeleryTestBroker):
    pass
