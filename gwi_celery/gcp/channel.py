"""gRPC channels, one per process: a forked child makes its own and leaves the inherited one alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from gwi_celery.gcp.process import PerProcess


class Channel:
    """Connects at the first use in each process. Any thread may use it.

    Args:
        connect: Makes the gRPC channel. If it raises, so does the use; the next use tries again.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._opened = PerProcess(partial(_Opened, connect), _Opened.close)

    def get(self) -> Any:
        """This process's gRPC channel; not to be kept."""
        return self._opened.get().channel

    def stub(self, method: str, make: Callable[[Any], Any]) -> Any:
        """The callable of a method. ``make`` gets it from the gRPC channel, once for each channel."""
        opened = self._opened.get()
        stub = opened.stubs.get(method)
        if stub is None:
            stub = opened.stubs[method] = make(opened.channel)
        return stub

    def close(self) -> None:
        """Close this process's channel. Safe to call twice; the next use opens another."""
        self._opened.close()


class _Opened:
    def __init__(self, connect: Callable[[], Any]) -> None:
        _befriend_gevent()
        self.channel = connect()
        self.stubs: dict[str, Any] = {}

    def close(self) -> None:
        self.channel.close()


_gevent_knows = False


def _befriend_gevent() -> None:
    """Make gRPC wait in gevent's event loop rather than block it, before the first channel is made.

    Does nothing in a process that gevent has not patched.
    """
    global _gevent_knows  # noqa: PLW0603 once for a process: gRPC makes a thread pool for it
    monkey = sys.modules.get("gevent.monkey")
    if _gevent_knows or monkey is None or not monkey.is_module_patched("threading"):
        return
    _gevent_knows = True
    from grpc.experimental import gevent

    gevent.init_gevent()
