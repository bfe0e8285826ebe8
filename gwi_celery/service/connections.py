"""Connections that strangers open and don't use: limited in number and in time.

uvicorn's own time-out begins with the end of an answer, so one who never sends a whole request would
be kept for ever, and with it a descriptor of the worker's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

#: Seconds that a request's head may take, from the connection or from its first byte.
HEAD_TIMEOUT = 10.0
#: Share of this process's descriptors that connections may take: the worker needs the others.
_SHARE = 1 / 4
#: Seconds between two warnings about too many.
_WARN_EVERY = 60.0


def limited(most: int) -> Any:
    """A protocol for uvicorn that keeps ``most`` connections at a time."""
    return functools.partial(LimitedProtocol, most=most)


def most_connections(most: int) -> int:
    """``most``, or as many as this process's limit of descriptors has room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(min(most, int(soft * _SHARE)), 8)


class LimitedProtocol(H11Protocol):
    """One connection. A new one over the limit ends the one that has been idle for longest."""

    _warned_at = -_WARN_EVERY

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most
        self._head_timer: asyncio.TimerHandle | None = None
        self._served = False
        self._used_at = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._idle and self._head_timer is None:
            self._expect_head()
        super().data_received(data)
        if not self._idle:
            self._served, self._used_at = True, time.monotonic()
            self._head_is_there()

    @property
    def _idle(self) -> bool:
        """No request is being answered, or none whose answer its caller takes."""
        cycle: Any = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete or self.flow.write_paused

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self.transport.abort()

    def _make_room(self) -> None:
        others = [c for c in self.connections if isinstance(c, LimitedProtocol) and c is not self]
        idle = [c for c in others if c._idle and not c.transport.is_closing()]
        # First those that never asked for anything.
        victim = min(idle, key=lambda c: (c._served, c._used_at), default=self)
        victim.transport.abort()
        self.connections.discard(victim)
        now = time.monotonic()
        if now - LimitedProtocol._warned_at > _WARN_EVERY:
            LimitedProtocol._warned_at = now
            logger.warning(
                "over %d connections at once: %s",
                self._most,
                "new ones are refused" if victim is self else "those idle for longest are closed",
            )
