"""Bells: how a waiting loop is woken."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from gwi_celery.brokers import wakeups


def test_a_signal_may_ring_the_bell_that_is_being_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was told to stop in that moment would wait for itself, for ever."""
    bell = wakeups.local_bell()
    handled: list[int] = []

    def write(fd: int, data: bytes, write: Any = os.write) -> int:
        if not handled:
            handled.append(fd)
            bell.ring()  # as the handler does, in the same thread
        return int(write(fd, data))

    monkeypatch.setattr(wakeups.os, "write", write)
    ringing = threading.Thread(target=bell.ring, daemon=True)
    ringing.start()
    ringing.join(20)
    assert not ringing.is_alive()
    assert os.read(bell.fileno(), 10) == b"\0\0"
    bell.close()
