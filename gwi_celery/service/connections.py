"""Connections that strangers open and don't use: limited in number and in time.

uvicorn's own time-out begins with the end of an answer, so a client that never sends a whole request
would keep its connection for ever, and with it a file descriptor of this process.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

#: Seconds that a request's head may take, from the connection or from its first byte.
HEAD_TIMEOUT = 10.0
#: Bytes of a refused body that are read and dropped, so that its sender can read the answer.
_DROPPED_AT_MOST = 64 * 1024 * 1024
#: Share of this process's descriptors that connections may take: the worker needs the others.
_SHARE = 1 / 4
#: Seconds between two warnings about too many connections.
_WARN_EVERY = 60.0


def limited(most: int) -> Any:
    """A protocol for uvicorn that keeps ``most`` connections at a time."""
    return functools.partial(LimitedProtocol, most=most)


def most_connections(most: int) -> int:
    """``most``, or as many as this process's limit of descriptors has room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(min(most, int(soft * _SHARE)), 8)


class _Transport:
    """A connection's transport, which is not closed at once while its caller is still sending.

    The kernel would answer what arrives after that with a reset, and the caller would lose the answer
    that it has not read yet. So only our side is closed, and what else arrives is dropped.
    """

    def __init__(self, transport: asyncio.Transport, sends: Callable[[], bool]) -> None:
        self._transport = transport
        self._sends = sends
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._sends():
            self.lingers = True
            self._transport.write_eof()
        else:
            self._transport.close()


class LimitedProtocol(H11Protocol):
    """One connection. A new one over the limit ends the one that has been idle for longest."""

    _warned_at = -_WARN_EVERY

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most
        self._head_timer: asyncio.TimerHandle | None = None
        self._served = False
        self._used_at = time.monotonic()
        self._dropped = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = _Transport(transport, self._still_sends)
        super().connection_made(self._lingering)  # type: ignore[arg-type]
        self._expect_head()
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._lingering.lingers:
            self.transport.abort()
        else:
            super().shutdown()

    def _still_sends(self) -> bool:
        """Whether the caller is still sending; asked when the connection is about to be closed."""
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            return False
        self.flow.resume_reading()
        self._head_is_there()
        self._expect_head()  # it has as long as it had for its head
        return True

    def data_received(self, data: bytes) -> None:
        if self._lingering.lingers:
            self._dropped += len(data)
            if self._dropped > _DROPPED_AT_MOST:
                self.transport.abort()
            return
        if self._idle and self._head_timer is None:
            self._expect_head()
        super().data_received(data)
        if not self._idle:
            self._served, self._used_at = True, time.monotonic()
            self._head_is_there()

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered, or the caller doesn't read its answer."""
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
        # First those that never sent a request.
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
