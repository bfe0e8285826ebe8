"""Extends the leases of held deliveries while their tasks run.

One thread per connection does this, from the first delivery on. It survives any error: a failed extension
is retried well before the lease runs out. If a lease is lost nevertheless, that is logged and remembered:
the message is redelivered, and a reliable job finds its lock taken.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import time
from typing import Any

from gwi_celery import forks
from gwi_celery.background import NEVER, Ticker
from gwi_celery.brokers.base import SURE, Broker, Delivery
from gwi_celery.errors import BrokerError
from gwi_celery.text import safe_error

logger = logging.getLogger(__name__)

#: A lease is extended when this share of it has passed: two more tries fit in before it ends.
_EXTEND_AT = 1 / 3

#: Seconds between tries after an error.
_RETRY = 1.0

#: Longest time, seconds, between two warnings while the broker stays unavailable.
_LONGEST_SILENCE = 60.0

#: Property of a message in the worker: its index in the board.
LEASE_PROPERTY = "gwi_lease"

#: One byte for each of the latest deliveries: 1 once its lease is lost. It is shared memory, made before
#: a pool forks: pool processes read what the main process writes.
_board = mmap.mmap(-1, 65536)
_places = itertools.count()


def message_lease_lost(request: Any) -> bool:
    """Whether the message behind a task's ``request`` is no longer leased to its worker.

    True means that it may be delivered to another worker while this task runs. This is for plain tasks
    that should stop in that case; a ReliableTask has its own lock, see its ``lease_lost``.
    Always False in a pool that is started by spawn, and outside workers on this package's transports.
    """
    place = (getattr(request, "properties", None) or {}).get(LEASE_PROPERTY)
    return isinstance(place, int) and _board[place % len(_board)] == 1


class LeaseKeeper:
    """Extends the lease of each delivery from ``keep`` until ``drop``.

    Args:
        broker: The broker of the deliveries.
        max_seconds: Longest time to keep one delivery leased, seconds; None: as long as its task runs.
    """

    def __init__(self, broker: Broker, *, max_seconds: float | None = None) -> None:
        self._broker = broker
        self._max_seconds = max_seconds
        self._kept: dict[str, _Kept] = {}
        self._lock = forks.lock()
        self._ticker = Ticker("gwi-lease-keeper", self._extend_due)
        #: Monotonic time of the last warning (0: none since a success); seconds until the next.
        self._warned_at, self._silence = 0.0, _RETRY

    def keep(self, delivery: Delivery) -> int:
        """Extend its lease from now on. Returns its index in the board, for the message to carry."""
        due = delivery.leased_at + delivery.lease_seconds * _EXTEND_AT
        place = next(_places) % len(_board)
        _board[place] = 0
        with self._lock:
            self._kept[delivery.ack_id] = _Kept(delivery, place, due)
        self._ticker.wake(due)
        return place

    def drop(self, delivery: Delivery) -> None:
        """Extend it no more."""
        with self._lock:
            self._kept.pop(delivery.ack_id, None)

    def holds(self, delivery: Delivery) -> bool:
        """Whether it is kept and its lease certainly holds, so that no other worker has it."""
        with self._lock:
            kept = self._kept.get(delivery.ack_id)
            return kept is not None and time.monotonic() < kept.until

    def stop(self) -> None:
        """End the thread; kept leases run out by themselves."""
        with self._lock:
            self._kept.clear()
        self._ticker.stop(5)

    def _extend_due(self) -> float:
        now = time.monotonic()
        with self._lock:
            due = [k for k in self._kept.values() if k.due <= now]
        try:
            self._extend(due)
            self._warned_at = 0.0
        except Exception as exc:
            self._warn(exc, len(due))
            with self._lock:
                for k in due:
                    k.due = time.monotonic() + min(_RETRY, k.delivery.lease_seconds / 10)
        with self._lock:
            return min((k.due for k in self._kept.values()), default=NEVER)

    def _warn(self, exc: Exception, leases: int) -> None:
        """Log a failure in one line, and less and less often: it is tried again each second."""
        now = time.monotonic()
        if not self._warned_at:
            self._silence = _RETRY
        elif now < self._warned_at + self._silence:
            return
        else:
            self._silence = min(self._silence * 2, _LONGEST_SILENCE)
        self._warned_at = now
        known = isinstance(exc, BrokerError)
        logger.warning(
            "could not extend %d message leases, trying again: %s",
            leases,
            safe_error(exc),
            exc_info=None if known else exc,
        )

    def _extend(self, due: list[_Kept]) -> None:
        by_length: dict[float, list[_Kept]] = {}
        for k in due:
            held = time.monotonic() - k.delivery.leased_at
            if self._max_seconds is not None and held > self._max_seconds:
                logger.warning(
                    "message %s of queue %r has been held for more than %g s: its lease is no "
                    "longer extended",
                    k.delivery.message_id,
                    k.delivery.queue,
                    self._max_seconds,
                )
                _board[k.place] = 1
                self.drop(k.delivery)
            else:
                by_length.setdefault(k.delivery.lease_seconds, []).append(k)
        for seconds, group in by_length.items():
            now = time.monotonic()
            lost = {d.ack_id for d in self._broker.extend([k.delivery for k in group], seconds)}
            with self._lock:
                for k in group:
                    k.due, k.until = now + seconds * _EXTEND_AT, now + seconds * SURE
                    if k.delivery.ack_id in lost and k.delivery.ack_id in self._kept:
                        del self._kept[k.delivery.ack_id]
                        _board[k.place] = 1
                        logger.warning(
                            "lost the lease of message %s of queue %r: it is redelivered",
                            k.delivery.message_id,
                            k.delivery.queue,
                        )


class _Kept:
    __slots__ = ("delivery", "due", "place", "until")

    def __init__(self, delivery: Delivery, place: int, due: float) -> None:
        self.delivery = delivery
        self.place = place
        self.due = due
        #: Monotonic time until which the lease certainly holds.
        self.until = delivery.held_until()
