"""How the embedded broker's receivers are woken without polling, across processes.

Each receiver has a *bell*: a FIFO in a folder, or a pipe for a broker in memory. Whoever makes a
message available writes one byte into the bells of that queue's subscribers. The same FIFO tells
whether a subscriber is alive: a FIFO without a reader can't be opened for writing, and the system
closes a dead process's descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import stat
import time
import uuid
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gwi_celery import folder, forks
from gwi_celery.errors import BrokerUnusable

#: Seconds after which a receiver on a FIFO looks without being woken: the publisher may have been killed
#: between its commit and the wake-up, or run as a user who may not write to the FIFO.
LOOK_INTERVAL = 30.0
#: The same where the file system has no FIFOs, so that a receiver has to poll.
POLL_INTERVAL = 0.05

#: The name of a bell.
_NAME = re.compile(r"[0-9a-f]{32}(\.polled)?")
#: Suffix of the name of a bell that has no FIFO.
_POLLED = ".polled"
#: Seconds without a refresh after which such a bell counts as dead.
_POLLED_LIFETIME = 300.0
_NO_FIFOS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
_NO_READER = frozenset({errno.ENXIO, errno.ENOENT, errno.ELOOP})
#: A pipe holds no more than this, so one read of it leaves nothing behind.
_PIPE_CAPACITY = 65536


class Bell:
    """The reading end. After a fork, the child's copy is closed: the FIFO stays the parent's."""

    def __init__(self, name: str, read_fd: int, write_fd: int, interval: float | None) -> None:
        self.name = name
        #: Seconds after which to look without having been woken; None: not needed.
        self.interval = interval
        self._read_fd = read_fd
        # Kept open because a FIFO without a writer is always readable: it is at its end.
        self._write_fd = write_fd
        # Another thread may ring while the owner closes the descriptor, whose number may then be in use
        # again.
        # Reentrant, because a signal handler may ring while its own thread is ringing.
        self._lock = forks.rlock()
        _bells.add(self)

    def fileno(self) -> int:
        return self._read_fd

    def ring(self) -> None:
        """Wake the owner. Any thread may do so."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full of wake-ups
            if self._write_fd != -1:
                os.write(self._write_fd, b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, _PIPE_CAPACITY)

    def close(self) -> None:
        """Close this process's descriptors, and leave the FIFO. Safe to call twice."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close without the lock, which a fork may have left taken."""
        fds, self._read_fd, self._write_fd = {self._read_fd, self._write_fd} - {-1}, -1, -1
        for fd in fds:
            os.close(fd)

    def __del__(self) -> None:
        # It was never closed, and must not seem alive.
        self.abandon()


class Wakeups(Protocol):
    """All bells of one broker."""

    def open(self) -> Bell:
        """Make a bell. Raises BrokerUnusable if this user may not."""

    def ring(self, names: Iterable[str]) -> list[str]:
        """Wake these bells; returns the names of dead ones. A wake-up that is still unread is enough."""

    def alive(self, name: str) -> bool: ...

    def refresh(self, bell: Bell) -> None:
        """Called by a living owner about every LOOK_INTERVAL seconds."""

    def remove(self, name: str) -> None:
        """Forget a bell that is closed or dead."""


class FolderWakeups:
    """FIFOs in a folder: any process of this machine can wake any other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> Bell:
        name = uuid.uuid4().hex
        try:
            folder.make(self._folder)
            if self._make_fifo(name):
                return Bell(name, *self._both_ends(name), LOOK_INTERVAL)
            name += _POLLED
            Path(self._path(name)).touch()
            return Bell(name, *_pipe(), POLL_INTERVAL)
        except OSError as exc:
            self.remove(name)  # it may have been made, and not opened
            raise BrokerUnusable(
                f"can't make a file in {self._folder}, where receivers are woken: {exc.strerror}; "
                "make that folder writable for this user, or name another one"
            ) from exc
        except folder.Refused as exc:
            raise BrokerUnusable(f"receivers can't be woken: {exc}") from exc

    def ring(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not name.endswith(_POLLED) and not self._ring(name)]

    def alive(self, name: str) -> bool:
        if not name.endswith(_POLLED):
            return self._ring(name, b"")
        try:
            return (
                _NAME.fullmatch(name) is not None
                and time.time() - os.lstat(self._path(name)).st_mtime < _POLLED_LIFETIME
            )
        except FileNotFoundError:
            return False

    def refresh(self, bell: Bell) -> None:
        if bell.name.endswith(_POLLED):
            Path(self._path(bell.name)).touch()

    def remove(self, name: str) -> None:
        if _NAME.fullmatch(name):
            with contextlib.suppress(OSError):
                os.unlink(self._path(name))

    def _ring(self, name: str, byte: bytes = b"\0") -> bool:
        """Write ``byte``; False if nobody can ever read it.

        Names come from the database; whoever writes one there must not be able to name another file.
        """
        if not _NAME.fullmatch(name):
            return False
        try:
            # Opening takes 4 µs, and leaves no descriptor to keep across a fork.
            fd = os.open(self._path(name), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as exc:
            # Any other reason (another user's FIFO, no descriptor left) doesn't mean that it is dead.
            return exc.errno not in _NO_READER
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                return False
            if byte:
                os.write(fd, byte)
        except BlockingIOError:  # it is full of wake-ups
            pass
        except BrokenPipeError:
            return False
        finally:
            os.close(fd)
        return True

    def _make_fifo(self, name: str) -> bool:
        if not hasattr(os, "mkfifo"):
            return False
        try:
            os.mkfifo(self._path(name))
            os.chmod(self._path(name), 0o600)
        except OSError as exc:
            if exc.errno in _NO_FIFOS:
                return False
            raise
        return True

    def _both_ends(self, name: str) -> tuple[int, int]:
        read_fd = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return read_fd, os.open(self._path(name), os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            os.close(read_fd)
            raise

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


class PipeWakeups:
    """Pipes, within one process."""

    def __init__(self) -> None:
        self._bells: weakref.WeakValueDictionary[str, Bell] = weakref.WeakValueDictionary()

    def open(self) -> Bell:
        bell = Bell(uuid.uuid4().hex, *_pipe(), None)
        self._bells[bell.name] = bell
        return bell

    def ring(self, names: Iterable[str]) -> list[str]:
        dead = []
        for name in names:
            bell = self._bells.get(name)
            if bell is None:
                dead.append(name)
            else:
                bell.ring()
        return dead

    def alive(self, name: str) -> bool:
        return name in self._bells

    def refresh(self, bell: Bell) -> None:
        pass

    def remove(self, name: str) -> None:
        self._bells.pop(name, None)


def local_bell() -> Bell:
    """A bell that only threads of this process can ring."""
    return Bell("", *_pipe(), None)


def wait_readable(fds: Iterable[int], seconds: float | None) -> None:
    """Wait until one of them is readable, ``seconds`` at most. Any number may be open in the process."""
    with selectors.DefaultSelector() as waiting:
        for fd in fds:
            waiting.register(fd, selectors.EVENT_READ)
        waiting.select(seconds)


def _pipe() -> tuple[int, int]:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    return read_fd, write_fd


#: This process's open bells.
_bells: weakref.WeakSet[Bell] = weakref.WeakSet()


def _close_inherited() -> None:
    # Left open in the child, they would keep a dead parent's FIFO readable, and it alive.
    for bell in list(_bells):
        bell.abandon()
    _bells.clear()


os.register_at_fork(after_in_child=_close_inherited)
