"""The Kombu transport over a broker: connections, the event loop, and wake-ups.

An arriving message makes the receiver's descriptor readable, which wakes Celery's hub (or the
``select`` of a blocking drain) at once. Nothing polls: between wake-ups there is at most one timer, for
the next delayed message or expiring lease. An ack frees a place in the prefetch window and wakes the
loop through a separate pipe, because the broker's descriptors don't signal it.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from typing import Any
from urllib.parse import quote

from celery import signals
from kombu.transport import base, virtual

from gwi_celery.authority import AUTHORITY_OPTION, find
from gwi_celery.brokers.base import Broker, Receiver
from gwi_celery.brokers.wakeups import Bell, local_bell, wait_readable
from gwi_celery.errors import (
    BatchFailed,
    BrokerUnavailable,
    BrokerUnusable,
    ConfigurationError,
    MalformedMessage,
    NotDeleted,
    NotFound,
    PublishFailed,
)
from gwi_celery.options import SECONDS, optional
from gwi_celery.transport.channel import Channel as _Channel
from gwi_celery.transport.connection import REFUSED_OPTION
from gwi_celery.transport.leases import LeaseKeeper

logger = logging.getLogger(__name__)

#: Kombu's and Celery's own transport options: how to reconnect, and some that have no effect here.
_KOMBU_OPTIONS = frozenset(
    {
        "body_encoding",
        "client_properties",
        "confirm_publish",
        "connect_retries_timeout",
        "deadletter_queue",
        "errback",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_retries",
        "polling_interval",
        "retry_errors",
    }
)

#: Most messages handed over before Celery's event loop handles other events.
_MOST_AT_ONCE = 1000
_MAX_LEASE = optional(SECONDS)
#: Longest wait for messages, seconds, while the worker stops.
_STOPPING_WAIT = 0.1
#: Seconds by which the event loop's timer may be late; Celery's own loop counts in milliseconds.
_SLACK = 0.001


class Transport(virtual.Transport):
    """One connection. A subclass says how a URL becomes a broker."""

    Channel = _Channel
    can_parse_url = True
    default_port = 0
    polling_interval = None

    connection_errors = (*base.Transport.connection_errors, BrokerUnavailable, OSError)
    # Kombu reconnects for each of these. Permanent errors (no credentials, a read-only file) are raised
    # as they are. So is that of a deleted file: reconnecting would silently create another.
    channel_errors = (
        *base.Transport.channel_errors,
        *(BatchFailed, MalformedMessage, NotDeleted, NotFound, PublishFailed),
    )

    implements = base.Transport.implements.extend(
        asynchronous=True,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = dict(client.transport_options or {})
        if REFUSED_OPTION in options:
            raise ConfigurationError(str(options[REFUSED_OPTION]))
        #: Longest time one delivery's lease is extended, seconds; None: as long as its task runs.
        self._max_lease_seconds: float | None = _MAX_LEASE.convert(
            options.pop("max_lease_seconds", None),
            "broker_transport_options['max_lease_seconds']",
        )
        for name in _KOMBU_OPTIONS:
            options.pop(name, None)
        authority = find(options.pop(AUTHORITY_OPTION, None))
        self.url = _url(client)
        self.broker: Broker = self.open_broker(self.url, options)
        #: Signs what it sends and admits what it receives; None for an app that was not set up.
        self.authority = authority
        self.broker.operators = self.authority
        if authority is not None:
            authority.pauses.listen(self)
        #: Whether this connection is a Celery worker's, which no message may end.
        self.serves_worker = False
        self._pid = os.getpid()
        self._receiver: Receiver | None = None
        self._leases: LeaseKeeper | None = None
        self._loop: Any = None
        #: The loop's timer for the next look, and its monotonic time.
        self._timer: Any = None
        self._timer_at = math.inf
        self._bell: Bell | None = None
        self._stopping = False

    def open_broker(self, url: str, options: dict[str, Any]) -> Broker:
        """The broker for a URL and the transport options. Raises ConfigurationError."""
        raise NotImplementedError  # each transport names its own

    # --- what channels use --------------------------------------------------------------------

    @property
    def receiver(self) -> Receiver:
        if self._receiver is None:
            self._receiver = self.broker.receiver()
            if self._loop is not None:
                self._loop.add_reader(self._receiver.fileno(), self.on_readable)
        return self._receiver

    @property
    def leases(self) -> LeaseKeeper:
        if self._leases is None:
            self._leases = LeaseKeeper(self.broker, max_seconds=self._max_lease_seconds)
        return self._leases

    def consuming_from(self, queue: str) -> bool:
        return any(channel.consuming_from(queue) for channel in self.channels)

    def wake(self) -> None:
        """Wake the loop: there may be a message that no descriptor signals. Any thread may call this."""
        if self._bell is not None:
            self._bell.ring()

    # --- Kombu's connection verbs -------------------------------------------------------------

    def establish_connection(self) -> Transport:
        try:
            self.broker.connect()
        except BrokerUnusable as exc:
            if len(getattr(self.client, "alt", None) or ()) > 1:
                raise BrokerUnavailable(str(exc)) from exc  # so that Kombu tries the next URL
            raise
        return self

    def create_channel(self, connection: Transport) -> _Channel:
        channel = self.Channel(connection)
        self.channels.append(channel)
        return channel

    def close_connection(self, connection: Transport) -> None:
        for channel in list(self.channels):
            channel.close()
        mine = os.getpid() == self._pid
        if self._leases is not None:
            self._leases.stop()
            self._leases = None
        if mine and self._loop is not None:
            self.unregister_from_event_loop(connection, self._loop)
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None
        if self._bell is not None:
            signals.worker_shutting_down.disconnect(self._on_worker_stopping)
            self._bell.close()
            self._bell = None
        if mine:
            self.broker.close()

    def drain_events(self, connection: Transport, timeout: float | None = None) -> None:
        """Deliver one message, or raise ``socket.timeout`` after ``timeout`` seconds.

        Only one, as with AMQP: a caller that counts messages, or waits for a certain one, checks between
        two calls. The next call delivers further messages at once.

        Once the worker is stopping, waits are short: a pool without Celery's event loop (gevent)
        checks for the stop only between waits.
        """
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        self._open_bell()
        while True:
            self._clear()
            if self._deliver_ready(1):
                return
            wait = self._next_due()
            if deadline is not None:
                if self._stopping:
                    deadline = min(deadline, began + _STOPPING_WAIT)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise socket.timeout("timed out")  # noqa: UP041 Kombu's contract by name
                wait = left if wait is None else min(wait, left)
            wait_readable(self._descriptors(), wait)

    # --- Celery's event loop ------------------------------------------------------------------

    def register_with_event_loop(self, connection: Transport, loop: Any) -> None:
        self._loop = loop
        loop.add_reader(self._open_bell().fileno(), self.on_readable)
        if self._receiver is not None:
            loop.add_reader(self._receiver.fileno(), self.on_readable)
        self.wake()

    def unregister_from_event_loop(self, connection: Transport, loop: Any) -> None:
        self._cancel_timer()
        for fd in self._descriptors():
            loop.remove_reader(fd)
        self._loop = None

    def on_readable(self, *args: Any) -> None:
        """A message arrived, or a place became free: hand over the messages that fit."""
        self._clear()
        if self._deliver_ready(_MOST_AT_ONCE):
            self.wake()  # there may be more; let the loop handle other events first
            return
        due = self._next_due()
        if due is not None and self._loop is not None:
            self._look_within(due)

    def _look_within(self, seconds: float) -> None:
        """Have a timer of the loop look for messages.

        An earlier timer will do: a cancelled one stays in the loop's memory until its time.
        """
        now = time.monotonic()
        if not now < self._timer_at <= now + seconds + _SLACK:
            self._cancel_timer()
            self._timer_at = now + seconds
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._cancel_timer()
        self.on_readable()

    def _on_worker_stopping(self, **kwargs: Any) -> None:
        self._stopping = True
        self.wake()

    # --- internals ----------------------------------------------------------------------------

    def _deliver_ready(self, most: int) -> int:
        """Hand over up to ``most`` messages, and return how many it was; channels take turns."""
        delivered = 0
        for channel in list(self.channels):
            if channel.closed or delivered >= most:
                continue
            served = channel.deliver_ready(most - delivered)
            if served and channel in self.channels:
                self.channels.remove(channel)
                self.channels.append(channel)
            delivered += served
        self.return_unwanted()
        return delivered

    def return_unwanted(self) -> None:
        """Give back the messages that were fetched for queues whose consumers are full."""
        if self._receiver is not None:
            channels = [channel for channel in self.channels if not channel.closed]
            for queue in set().union(*(channel.queues() for channel in channels)):
                if not any(channel.has_room(queue) for channel in channels):
                    self._receiver.return_unpolled(queue)

    def _next_due(self) -> float | None:
        if self._receiver is None:
            return None
        if not any(c.qos.can_consume() for c in self.channels if not c.closed):
            return None  # nothing could be taken; an ack wakes us
        return self._receiver.next_due()

    def _clear(self) -> None:
        if self._receiver is not None:
            self._receiver.clear()
        if self._bell is not None:
            self._bell.clear()

    def _descriptors(self) -> list[int]:
        fds = [] if self._bell is None else [self._bell.fileno()]
        if self._receiver is not None:
            fds.append(self._receiver.fileno())
        return fds

    def _open_bell(self) -> Bell:
        if self._bell is None:
            self._bell = local_bell()
            # A signal doesn't end a wait (PEP 475), so stopping would take as long as the wait.
            signals.worker_shutting_down.connect(self._on_worker_stopping)
        return self._bell

    def _cancel_timer(self) -> None:
        timer, self._timer, self._timer_at = self._timer, None, math.inf
        if timer is not None:
            timer.cancel()

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return self.url


def _url(client: Any) -> str:
    """The URL of a connection.

    Kombu passes it whole to a transport that can parse URLs, but after a failover it passes the parts
    of the alternate URL.
    """
    hostname: str = client.hostname or ""
    if "://" in hostname:
        return hostname
    port = f":{client.port}" if client.port else ""
    path = quote((client.virtual_host or "").strip("/"), safe="/:")
    return f"{client.transport_cls}://{hostname}{port}" + (f"/{path}" if path else "")
