"""Bells: how a waiting loop is woken."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from gwi_celery.brokers import wakeups
from gwi_celery.errors import BrokerUnusable


def test_a_bell_that_can_not_be_opened_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(wakeups.os, "open", refuse)
    with pytest.raises(BrokerUnusable, match="Too many open files"):
        wakeups.FolderWakeups(tmp_path / "wake").open()
    monkeypatch.undo()
    assert list((tmp_path / "wake").iterdir()) == []


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


def test_a_descriptor_of_any_number_can_be_waited_for() -> None:
    """select(2) takes those below 1024 only, and a push service may have more connections than that."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    bell = wakeups.local_bell()
    high = fcntl.fcntl(bell.fileno(), fcntl.F_DUPFD_CLOEXEC, 1024)
    try:
        wakeups.wait_readable([high], 0.0)
        bell.ring()
        wakeups.wait_readable([high], None)
    finally:
        os.close(high)
        bell.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
