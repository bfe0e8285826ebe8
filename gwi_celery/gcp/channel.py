"""Channels, one per process."""

from __future__ import annotations

import sys

_gevent_knows = False


def befriend_gevent() -> None:
    """Before a process makes its first channel: gRPC's waits must not block gevent's event loop.

    Does nothing in a process that gevent has not patched.
    """
    global _gevent_knows  # noqa: PLW0603 once for a process: gRPC makes a thread pool for it
    monkey = sys.modules.get("gevent.monkey")
    if _gevent_knows or monkey is None or not monkey.is_module_patched("threading"):
        return
    _gevent_knows = True
    from grpc.experimental import gevent

    gevent.init_gevent()
