"""Which other connections read a temporary queue: Pub/Sub doesn't tell.

Nearly every such queue has one reader, the connection that created it: then the only cost is one call
when that ends. A connection that reads another's queue creates a sign, ``gwi-q~u<id>``, and deletes it
when it stops reading. When the creator stops, it looks for signs. If there are any, the queue stays, with
one more sign, ``gwi-q~left``, which tells the last reader to delete it.

The sign of a killed process expires after a day, as does a queue that nobody reads.
"""

from __future__ import annotations

import contextlib
import time
import uuid

from gwi_celery.background import Scheduler
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.errors import BrokerError, NotFound

#: Seconds: Pub/Sub's shortest expiration, and the time between two uses of a sign.
_EXPIRATION = 86400
_REFRESH = 6 * 3600.0


class Readers:
    """The signs of one connection. ``jobs`` refreshes them in the background."""

    def __init__(self, admin: Admin, jobs: Scheduler) -> None:
        self._admin = admin
        self._jobs = jobs
        #: A queue's own subscription -> this connection's sign that it reads it.
        self._ours: dict[str, str] = {}

    def join(self, subscription: str) -> None:
        """This connection begins to read another's queue."""
        if subscription not in self._ours:
            sign = f"{subscription}~u{uuid.uuid4().hex[:16]}"
            self._admin.sign(sign, {}, _EXPIRATION)
            self._ours[subscription] = sign
            self._refresh_later(subscription, sign)

    def leave(self, subscription: str, *, made: bool) -> bool:
        """This connection stops reading; returns whether no reader is left.

        ``made``: this connection created the queue.
        """
        ours = self._ours.pop(subscription, None)
        if ours is not None:
            self._admin.delete_subscription(ours)
        elif not made:
            return False
        left = f"{subscription}~left"
        signs = {sign for sign in self._admin.signs() if sign.startswith(f"{subscription}~")}
        if signs - {left}:
            if made:
                self._admin.sign(left, {}, _EXPIRATION)
            return False
        if left in signs:
            self._admin.delete_subscription(left)
        return made or left in signs

    def _refresh_later(self, subscription: str, sign: str) -> None:
        self._jobs.run(lambda: self.refresh(subscription, sign), time.monotonic() + _REFRESH)

    def refresh(self, subscription: str, sign: str) -> None:
        """Keep the sign from expiring while this connection reads."""
        if self._ours.get(subscription) != sign:
            return
        with contextlib.suppress(BrokerError):
            try:
                self._admin.touch(sign)
            except NotFound:
                self._admin.sign(sign, {}, _EXPIRATION)
        self._refresh_later(subscription, sign)
