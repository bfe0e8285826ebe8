"""The backend that Celery gets: values and chords, and waiting for results."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from celery import states
from celery.exceptions import TimeoutError
from kombu.utils.encoding import bytes_to_str

from gwi_celery.backends import tenants
from gwi_celery.backends.firestore.chords import FirestoreChords
from gwi_celery.firestore.listener import Listener, Watch, listener_of, stop_listening
from gwi_celery.stores.firestore.results import result_name

#: Documents that one wait watches at a time. Google advises against more than 100 in a process.
_LISTENED: Final = 50
#: Pauses, seconds, between polls while the stream of changes is down.
_FIRST_LOOK, _LONGEST_LOOK = 0.5, 2.0
#: Seconds between polls while it is up, in case it has stalled.
_LIVE_LOOK: Final = 30.0


class FirestoreBackend(FirestoreChords):
    """See the package, and :class:`FirestoreValues` for its arguments."""

    @property
    def _listener(self) -> Listener:
        return listener_of(self.client)

    def close(self) -> None:
        """Close this process's connection. Safe to call twice; the next call opens another."""
        stop_listening(self.client)
        self.client.close()

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Celery's, but woken by the result instead of polling every ``interval``."""
        self._ensure_not_eager()
        meta = self.get_task_meta(task_id)
        if meta["status"] in states.READY_STATES:
            return self.arrived(meta, on_interval)
        for _, meta in self._waited([task_id], timeout, interval, on_interval):
            return self.arrived(tenants.checked(task_id, meta), on_interval)
        raise AssertionError  # the loop returns, or raises TimeoutError

    def get_many(
        self,
        task_ids: Any,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: Any = states.READY_STATES,
    ) -> Iterator[tuple[str, Any]]:
        """As Celery's: one read for up to 100 results, then woken by those that arrive."""
        left = list(dict.fromkeys(bytes_to_str(task_id) for task_id in task_ids))
        for task_id in list(left):
            meta = self._cached(task_id)
            if meta is not None and meta["status"] in READY_STATES:
                left.remove(task_id)
                yield task_id, tenants.checked(task_id, meta)
        for task_id, meta in (self._look(left) if left else {}).items():
            left.remove(task_id)
            tenants.checked(task_id, meta)
            if on_message is not None:
                on_message(meta)
            yield task_id, meta
        if left and not max_iterations:
            for task_id, meta in self._waited(left, timeout, interval, on_interval):
                tenants.checked(task_id, meta)
                if on_message is not None:
                    on_message(meta)
                yield task_id, meta

    def _cached(self, task_id: str) -> Any:
        try:
            return self._cache[task_id]
        except KeyError:
            return None

    def _look(self, task_ids: Sequence[str]) -> dict[str, Any]:
        """The results that are ready; puts them into Celery's cache as well."""
        values = self.retried(self.mget, [self.get_key_for_task(id) for id in task_ids])
        ready: dict[str, Any] = self._mget_to_results(values, list(task_ids))
        self._cache.update(ready)
        return ready

    def _waited(
        self,
        task_ids: Collection[str],
        timeout: float | None,
        interval: float | None,
        on_interval: Any,
    ) -> Iterator[tuple[str, Any]]:
        """Each result, once it is ready. Raises Celery's TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = {result_name(self._paths, self.get_key_for_task(id)): id for id in task_ids}
        left = list(ids)
        looked_at, pause = time.monotonic(), _FIRST_LOOK
        with self._listener.watching() as watch:
            while left:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    raise TimeoutError("The operation timed out.")
                _keep_listening(watch, left)
                until = min(
                    looked_at + (_LIVE_LOOK if watch.live else pause),
                    now + (interval or _LONGEST_LOOK),
                    now + _LONGEST_LOOK if deadline is None else deadline,
                )
                ready = self._ready(watch.wait(until - now), ids)
                if watch.live:
                    pause = _FIRST_LOOK
                if not ready and time.monotonic() >= looked_at + (
                    _LIVE_LOOK if watch.live else pause
                ):
                    ready = self._look([ids[name] for name in left])
                    looked_at, pause = time.monotonic(), min(pause * 1.5, _LONGEST_LOOK)
                for name in [name for name in left if ids[name] in ready]:
                    left.remove(name)
                    watch.drop(name)
                    yield ids[name], ready[ids[name]]
                if on_interval and not ready:
                    on_interval()

    def _ready(self, changes: Iterable[Any], ids: Mapping[str, str]) -> dict[str, Any]:
        ready = {}
        for change in changes:
            value = self._value(change.document, change.read_time)
            if value is None:
                continue
            meta = self.decode_result(value)
            if meta["status"] in states.READY_STATES:
                ready[ids[change.document.name]] = meta
        self._cache.update(ready)
        return ready


def _keep_listening(watch: Watch, left: Iterable[str]) -> None:
    """Watch at most 50 documents; start others as these finish."""
    for name in left:
        if len(watch) >= _LISTENED:
            return
        watch.add(name)
