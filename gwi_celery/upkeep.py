"""Workers delete what has expired from the embedded files, so that these stop growing.

Each worker's main process and each push service has a thread for it. About once in ``cleanup_interval``
seconds the first of them goes through broker, store and results in small transactions, and returns free
pages to the file system. On Firestore a TTL policy does this.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import bootsteps

from gwi_celery import expiry
from gwi_celery.background import Ticker
from gwi_celery.backoff import jitter
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import ConfigurationError, GwiError, StoreUnusable
from gwi_celery.sqlite import Database
from gwi_celery.stores.sqlite import SqliteStore
from gwi_celery.text import safe_error

logger = logging.getLogger(__name__)

#: Records deleted in one transaction, during which other writers wait.
_BATCH = 200
#: Seconds between two transactions.
_PAUSE = 0.05
#: Seconds between two searches for dead letters that are about to expire.
_ANNOUNCE_EVERY = 3600.0
#: Seconds after which an error that lasts is logged again: at each of these searches, too.
_AGAIN = 0.9 * _ANNOUNCE_EVERY
#: The lock file in an embedded folder, and the length of the time of the last turn, which it holds.
_LOCK, _WIDTH = "upkeep.lock", 17


class Upkeep(bootsteps.StartStopStep):
    """Worker bootstep."""

    label = "Upkeep"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        from gwi_celery.integration import settings_for

        super().__init__(worker, **kwargs)
        self._cleaner = Cleaner(worker.app, settings_for(worker.app).cleanup_interval)

    def start(self, worker: Any) -> None:
        self._cleaner.start()

    def stop(self, worker: Any) -> None:
        self._cleaner.stop()

    def terminate(self, worker: Any) -> None:
        self._cleaner.stop()


class Cleaner:
    """Cleans up in the background.

    Args:
        interval: Seconds between two turns, approximately; 0: there are none.
    """

    def __init__(self, app: Any, interval: float) -> None:
        self._app = app
        self._interval = interval
        self._stop = threading.Event()
        self._ticker = Ticker("gwi-upkeep", self._take_turn)
        #: Monotonic time from which on what is about to expire is announced again.
        self._announce_at = 0.0
        #: What fails -> the error that was logged, and the monotonic time when it is logged again.
        self._failing: dict[str, tuple[str, float]] = {}

    def start(self) -> None:
        if self._interval > 0:
            self._ticker.wake(self._next_turn())

    def stop(self) -> None:
        """Begin no more turns; the current one ends with its transaction."""
        self._stop.set()
        self._ticker.stop(5)

    def _next_turn(self) -> float:
        return time.monotonic() + jitter(self._interval, 0.5, 1.0)

    def _take_turn(self) -> float:
        if time.monotonic() >= self._announce_at:  # before any of it is gone
            self._announce_at = time.monotonic() + _ANNOUNCE_EVERY
            with self._logged(
                "dead letters about to expire could not be announced or archived yet"
            ):
                _before_they_expire(self._app)
        with self._logged("expired records could not be deleted yet"):
            clean(self._app, interval=self._interval, stopping=self._stop)
        return self._next_turn()

    @contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        """Errors in the block end only the block. One that lasts is logged, as ``what``, once an hour."""
        try:
            yield
        except Exception as exc:
            error, now = safe_error(exc), time.monotonic()
            logged, again = self._failing.get(what, ("", 0.0))
            if error == logged and now < again:
                return
            self._failing[what] = error, now + _AGAIN
            if isinstance(exc, GwiError):
                logger.warning("%s: %s", what, exc)
            else:
                logger.exception(what)
        else:
            self._failing.pop(what, None)


def _before_they_expire(app: Any) -> None:
    with contextlib.suppress(ConfigurationError):  # another package's broker
        expiry.announce_expiring(app)
        expiry.archive_expiring(app)


def clean(app: Any, *, interval: float = 0.0, stopping: threading.Event | None = None) -> int:
    """Delete expired records in the app's embedded files, and shrink the files; returns how many.

    Args:
        interval: A folder that another process has cleaned within half of this time is left alone.
        stopping: Once it is set, stop after the current transaction.
    """
    stopping = stopping or threading.Event()
    deleted = 0
    for folder, chores in _chores(app).items():
        with _alone_in(folder, interval) as alone:
            for database, delete in chores if alone else ():
                found = _BATCH
                while found >= _BATCH and not stopping.is_set():
                    found = delete(_BATCH)
                    deleted += found
                    stopping.wait(_PAUSE)
                while not stopping.is_set() and database.shrink():
                    stopping.wait(_PAUSE)
    return deleted


_Chore = tuple[Database, Callable[[int], int]]


def _chores(app: Any) -> dict[Path | None, list[_Chore]]:
    """Folder (None: memory) -> its databases and their clean-ups."""
    from gwi_celery.backends.embedded import EmbeddedBackend
    from gwi_celery.integration import broker_for, integration

    found: dict[Path | None, list[_Chore]] = {}

    def add(database: Database, delete: Callable[[int], int]) -> None:
        found.setdefault(database.path and database.path.parent, []).append((database, delete))

    store = integration(app).store
    if isinstance(store, SqliteStore):
        add(store.database, store.cleanup)
    backend = app.backend
    if isinstance(backend, EmbeddedBackend):
        add(backend.database, backend.delete_expired)
    with contextlib.suppress(GwiError):  # another package's broker
        broker = broker_for(app)
        if isinstance(broker, EmbeddedBroker):
            add(broker.database, broker.housekeep)
    return found


@contextmanager
def _alone_in(folder: Path | None, interval: float) -> Iterator[bool]:
    """Whether to clean this folder: False if another process is doing so, or did so lately.

    Raises StoreUnusable for a folder that can't be written.
    """
    if folder is None:
        yield True
        return
    try:
        # Not flock(): a pool's child would inherit the lock.
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        yield False  # unused so far
        return
    except OSError as exc:
        raise _unwritable(folder, exc) from exc
    try:
        with contextlib.suppress(OSError):  # 0.1 made it as open as the umask was
            os.fchmod(fd, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            last = float(os.pread(fd, _WIDTH, 0))
        except ValueError:  # the file is new, or a power cut left anything in it
            last = 0.0
        now = time.time()
        if last <= now < last + interval / 2:
            yield False
            return
        yield True
        try:
            os.pwrite(fd, f"{now:0{_WIDTH}.3f}".encode(), 0)
        except OSError as exc:
            raise _unwritable(folder, exc) from exc
    finally:
        os.close(fd)


def _unwritable(folder: Path, exc: OSError) -> StoreUnusable:
    return StoreUnusable(
        f"{folder / _LOCK} can't be written ({exc.strerror}): make the folder and its files writable for "
        "this user, and free some space if its disk is full; or set cleanup_interval=0"
    )
