"""The embedded vendor's nodes."""

from __future__ import annotations

from pytest_celery import CeleryTestBackend, CeleryTestBroker


class EmbeddedTestBroker(CeleryTestBroker):
    pass


class EmbeddedTestBackend(CeleryTestBackend):
    pass
