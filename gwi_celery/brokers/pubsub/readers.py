"""Who else reads from a queue that comes and goes: Pub/Sub doesn't tell.

Nearly every such queue has one reader, the connection that made it, so that costs a call at its end. A
connection that reads from what another one made leaves a sign, ``gwi-q~u<id>``, and takes it away when it
leaves. Whoever made the queue looks for signs when it leaves: if there are any, the queue stays, with one
sign more, ``gwi-q~left``, so that the last reader deletes it.

A killed process's sign expires after a day, and so does a queue that nobody reads from.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable

from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.errors import BrokerError, NotFound

#: Seconds: Pub/Sub's shortest expiration, and how often a sign is used before.
_EXPIRATION = 86400
_REFRESH = 6 * 3600.0


class Readers:
    """The signs of one connection. ``later`` calls a job in the background, at a monotonic time."""

    def __init__(self, admin: Admin, later: Callable[[float, Callable[[], object]], None]) -> None:
        self._admin = admin
        self._later = later
        #: A queue's own subscription -> our sign that we read from it.
        self._ours: dict[str, str] = {}

    def join(self, subscription: str) -> None:
        """We read from what another connection made."""
        if subscription not in self._ours:
            sign = self._ours[subscription] = f"{subscription}~u{uuid.uuid4().hex[:16]}"
            self._admin.sign(sign, {}, _EXPIRATION)
            self._refresh_later(subscription, sign)

    def leave(self, subscription: str, *, made: bool) -> bool:
        """We read no more. Whether that makes the queue nobody's; ``made``: it was ours."""
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
        self._later(time.monotonic() + _REFRESH, lambda: self.refresh(subscription, sign))

    def refresh(self, subscription: str, sign: str) -> None:
        """Keep our sign from expiring, as long as we read."""
        if self._ours.get(subscription) != sign:
            return
        with contextlib.suppress(BrokerError):
            try:
                self._admin.touch(sign)
            except NotFound:
                self._admin.sign(sign, {}, _EXPIRATION)
        self._refresh_later(subscription, sign)
