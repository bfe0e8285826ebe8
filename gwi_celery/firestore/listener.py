"""Waits for documents to change: one Listen stream for all waiters of a process.

The stream is opened for the first waiter, and closed when nobody has waited for a while. Each document
is a target of its own, as in Google's clients: with several documents in one target, the server would
send a message for each missing one whenever any changes.

A broken stream is reopened by the next waiter that checks. Until then, and until the server has sent a
target's current state, a :class:`Watch` is not ``live``, and its owner should poll. The new stream's
first answer includes the changes made meanwhile.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from gwi_celery import forks
from gwi_celery.background import NEVER, Ticker
from gwi_celery.backoff import Backoff
from gwi_celery.errors import StoreError
from gwi_celery.firestore.client import LISTEN_REQUEST, Client
from gwi_celery.firestore.documents import Document, micros
from gwi_celery.gcp import fork_gate
from gwi_celery.gcp.process import PerProcess
from gwi_celery.gcp.stream import BidiStream

logger = logging.getLogger(__name__)

#: Seconds for which a stream stays open when nobody waits, as one wait often follows another.
_IDLE: Final = 5.0
#: Pauses before a stream that broke is opened again, seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0

#: Values of the message's ``target_change_type``.
_REMOVED: Final = 2
_CURRENT: Final = 3


@dataclass(frozen=True)
class Change:
    """A document's current state: it has changed, or it existed when the watch began."""

    document: Document
    #: The server's time of that state, microseconds.
    read_time: int


class Watch:
    """The documents that one thread watches."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        #: What has happened since the last wait; None: the stream has ended.
        self._news: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        #: Name -> target.
        self._targets: dict[str, int] = {}

    def add(self, name: str) -> None:
        if name not in self._targets:
            self._targets[name] = self._listener.add(self, name)

    def drop(self, name: str) -> None:
        target = self._targets.pop(name, None)
        if target is not None:
            self._listener.drop(target)

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def live(self) -> bool:
        """Whether the server reports their changes, so that polling isn't needed."""
        return self._listener.is_current(self._targets.values())

    def wait(self, timeout: float) -> list[Change]:
        """Changes so far, or the first within ``timeout`` seconds. May return [] early."""
        self._listener.revive()
        changes: list[Change] = []
        try:
            item = self._news.get(timeout=max(timeout, 0.0))
            while True:
                if item is not None:
                    changes.append(item)
                item = self._news.get_nowait()
        except queue.Empty:
            return changes

    def wake(self, change: Change | None) -> None:
        """Hand a change to the waiter; None: the stream has ended."""
        self._news.put(change)

    def close(self) -> None:
        for name in list(self._targets):
            self.drop(name)


class Listener:
    """One process's stream. A LongCall of :mod:`gwi_celery.gcp.fork_gate`; a child makes its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = forks.lock()
        self._last_target = 0
        #: Target -> its watch and document.
        self._targets: dict[int, tuple[Watch, str]] = {}
        self._current: set[int] = set()
        self._stream: BidiStream | None = None
        self._paused = False
        #: Monotonic time before which a stream that broke isn't opened again.
        self._retry_at = 0.0
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        #: Monotonic time at which the latest watch of a document ended.
        self._used_at = 0.0
        self._idle = Ticker("gwi-listen-idle", self._end_if_idle)
        fork_gate.register(self)

    # --- watches ------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        watch = Watch(self)
        try:
            yield watch
        finally:
            watch.close()

    def add(self, watch: Watch, name: str) -> int:
        with self._lock:
            self._last_target += 1
            target = self._last_target
            self._targets[target] = watch, name
            if self._stream is not None:
                self._stream.send(self._watch_request(target, name))
            else:
                self._open()
            return target

    def drop(self, target: int) -> None:
        with self._lock:
            self._targets.pop(target, None)
            self._current.discard(target)
            self._used_at = time.monotonic()
            if self._stream is None:
                return
            request = LISTEN_REQUEST(database=self._client.path)
            request.remove_target = target
            self._stream.send(request)
            if not self._targets:
                self._idle.wake(self._used_at + _IDLE)

    def is_current(self, targets: Any) -> bool:
        with self._lock:
            return all(target in self._current for target in targets)

    def revive(self) -> None:
        """Reopen a broken stream once its pause has passed."""
        with self._lock:
            if self._stream is None and self._targets:
                self._open()

    # --- the stream ---------------------------------------------------------------------------

    def _open(self) -> None:
        """With the lock held. During a fork this opens nothing: resume() does, after it."""
        if self._paused or time.monotonic() < self._retry_at:
            return
        received: list[tuple[int, Document]] = []
        targets = self._targets.items()
        try:
            self._stream = BidiStream.open(
                self._client.listen,
                [self._watch_request(target, name) for target, (_, name) in targets],
                on_response=lambda response: self._take_in(response, received),
                on_end=self._ended,
                thread_name="gwi-listen",
            )
        except StoreError as exc:
            self._later(exc)
        else:
            self._paused = self._stream is None

    def _watch_request(self, target: int, name: str) -> Any:
        request = LISTEN_REQUEST(database=self._client.path)
        request.add_target.target_id = target
        request.add_target.documents.documents.append(self._client.document_path(name))
        return request

    def _ended(self, error: Exception | None) -> None:
        with self._lock:
            self._stream = None
            self._current.clear()
            if not self._paused and self._targets:
                self._later(error)
            watches = {watch for watch, _ in self._targets.values()}
        for watch in watches:
            watch.wake(None)

    def _take_in(self, response: Any, received: list[tuple[int, Document]]) -> None:
        """Hand on what was received since the last snapshot, once this response completes another."""
        if response.HasField("document_change"):
            change = response.document_change
            document = self._client.received(change.document)
            received += [(target, document) for target in change.target_ids]
            return
        if not response.HasField("target_change"):
            return  # about a missing document
        change = response.target_change
        if change.target_change_type == _REMOVED and change.HasField("cause"):
            raise ConnectionError(f"Firestore ended a watch: {change.cause.message}")
        if not change.HasField("read_time"):
            return
        # What has arrived by now is one consistent snapshot.
        read_time = micros(change.read_time)
        with self._lock:
            watched = [(self._targets[t][0], d) for t, d in received if t in self._targets]
            if change.target_change_type == _CURRENT:
                self._current.update(t for t in change.target_ids if t in self._targets)
                self._retry_at = 0.0
                self._pauses.reset()
        received.clear()
        for watch, document in watched:
            watch.wake(Change(document, read_time))

    def _later(self, error: Exception | None) -> None:
        """With the lock held: the stream broke. Waiters poll meanwhile."""
        what = "is over" if error is None else f"broke ({error})"
        logger.info("the stream of changes from Firestore %s: it is reopened", what)
        self._retry_at = time.monotonic() + self._pauses.next()

    # --- ending it ----------------------------------------------------------------------------

    def pause(self, waited: float) -> None:
        # No change is lost: the next stream begins with the current states.
        with self._lock:
            self._paused = True
            self._end()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._stream is None and self._targets:
                self._open()

    def close(self) -> None:
        """End the stream; the next waiter opens another."""
        with self._lock:
            self._end()
        self._idle.stop(0.0)

    def _end_if_idle(self) -> float:
        """End the stream if it is idle; returns the monotonic time of the next look."""
        with self._lock:
            if self._targets or self._stream is None:
                return NEVER
            idle_at = self._used_at + _IDLE
            if idle_at > time.monotonic():
                return idle_at
            self._end()
            return NEVER

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.cancel()


# --- one for each client and process --------------------------------------------------------------

_lock = forks.lock()
_listeners: PerProcess[dict[Client, Listener]] = PerProcess(dict, dict.clear)


def listener_of(client: Client) -> Listener:
    """This process's listener for the documents of ``client``."""
    with _lock:
        known = _listeners.get()
        listener = known.get(client)
        if listener is None:
            listener = known[client] = Listener(client)
        return listener


def stop_listening(client: Client) -> None:
    """End the stream of ``client``'s listener, if it has one. Safe to call twice."""
    with _lock:
        listener = _listeners.get().pop(client, None)
    if listener is not None:
        listener.close()
