"""The embedded transport: Celery's queues in one SQLite file, no server.

Features
========
* Type: Virtual
* Supports Direct: Yes
* Supports Topic: Yes
* Supports Fanout: Yes
* Supports Priority: Yes (0 to 9, higher first)
* Supports TTL: Yes
* Supports delayed delivery: Yes (``eta`` and ``countdown`` are kept by the broker)

Connection String
=================
``embedded:///path/to/folder``, ``embedded://`` for ``.gwi/`` at the project's root, or
``embedded://:memory:/name`` for the threads of one process.

Transport Options
=================
* ``lease_seconds``: seconds a delivery is leased for at a time (default 30).
* ``max_deliveries``: attempts at a message before it goes to the dead letter (default 20).
* ``retention``: longest time a message is kept, seconds (default 7 days).
* ``max_lease_seconds``: longest time a lease is extended, seconds (default: as long as the task runs).

They may also stand in the URL: ``embedded:///var/jobs?lease_seconds=10``.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from gwi_celery import embedded_url
from gwi_celery.brokers.base import Broker
from gwi_celery.brokers.embedded import EmbeddedBroker, memory_broker
from gwi_celery.options import check_known
from gwi_celery.transport import base


class Transport(base.Transport):
    driver_type = "embedded"
    driver_name = "sqlite3"

    def open_broker(self, url: str, options: dict[str, Any]) -> Broker:
        return open_broker(url, options)

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The URL with the absolute path: a worker prints it when it starts."""
        return embedded_url.absolute(self.url)

    def driver_version(self) -> str:
        return sqlite3.sqlite_version


def open_broker(url: str, options: dict[str, Any] | None = None) -> Broker:
    """The broker an ``embedded://`` URL names. Raises ConfigurationError."""
    options = dict(options or {})
    check_known(
        options, embedded_url.OPTIONS, "broker_transport_options has ", ", which is unknown"
    )
    parsed = embedded_url.parse(url)
    arguments: dict[str, Any] = {**embedded_url.read(options, url), **parsed.options}
    if parsed.folder is None:
        return memory_broker(parsed.memory, **arguments)
    return EmbeddedBroker(parsed.folder, **arguments)
