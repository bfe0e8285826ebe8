"""What this package's result backends add to Celery's: chords, whatever the storage.

A chord counts each part once, however often its message is redelivered. Its body is sent at least once,
or stored as failed.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from celery import states
from celery.canvas import group as group_signature
from celery.canvas import maybe_signature
from celery.exceptions import (
    BackendError,
    ChordError,
    Reject,
    SoftTimeLimitExceeded,
    TimeoutError,
)
from celery.result import GroupResult, ResultSet
from celery.utils.functional import _regen
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from gwi_celery import failures
from gwi_celery.backends.results import ReliableResults, is_stored
from gwi_celery.errors import BrokerUnavailable, StoreError

logger = logging.getLogger(__name__)

#: Size of a chord whose header is being made: more parts than there will ever be.
_SIZE_TO_COME = 2**40
#: Share of a result's TTL after which a chord's next part renews the whole chord: an hour of a day.
RENEW_CHORD_AFTER = 1 / 24


class Counted(tuple[int, bool]):
    """How many parts of a chord were counted, and whether its body was sent."""

    #: How many parts there will be, once Celery has told (else None), and how many joined later.
    size: int | None
    extra: int

    def __new__(cls, parts: int, sent: bool, *, size: int | None = None, extra: int = 0) -> Counted:
        counted = super().__new__(cls, (parts, sent))
        counted.size, counted.extra = size, extra
        return counted


class ReliableBackend(ReliableResults):
    """The part that all backends share. A subclass implements how values and counts are kept."""

    # --- to be implemented --------------------------------------------------------------------

    @abstractmethod
    def open_chord(self, group_id: str, key: str, value: Any) -> None:
        """Keep ``value``, a chord's group, under ``key``. A finished chord starts again."""

    @abstractmethod
    def keep_chord_size(self, group_id: str, size: int) -> None:
        """Keep how many parts the chord waits for."""

    @abstractmethod
    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """One more part joins the chord."""

    @abstractmethod
    def count_part(self, group_id: str, part: str) -> Counted:
        """Count one part of a chord, once, and keep the whole chord for the TTL of a new result."""

    @abstractmethod
    def parts(self, group_id: str) -> list[str]:
        """The ids of the parts that were counted."""

    @abstractmethod
    def mark_sent(self, group_id: str) -> None:
        """Record that the chord's body was sent, or has failed."""

    # --- chords -------------------------------------------------------------------------------

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        self.ensure_chords_allowed()
        group_id, results = header_result_args
        if isinstance(results, _regen):
            # A generator's tasks are sent while it makes them. An id is known once its task returns,
            # and their number once the last is made.
            self._open_chord(group_id, [])
            self.retried(self.keep_chord_size, group_id, _SIZE_TO_COME)
        else:
            self._open_chord(group_id, results)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Celery's call with the number of parts, before it sends the last one."""
        self.retried(self.keep_chord_size, group_id, chord_size)

    def _open_chord(self, group_id: str, results: Any) -> None:
        group = self.app.GroupResult(group_id, results)
        self._cache.pop(group_id, None)
        key, value = self.get_key_for_group(group_id), self.encode({"result": group.as_tuple()})
        self.retried(self.open_chord, group_id, key, value)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count the part, once; with the last one, send the body.

        The chord is marked as sent only afterwards: if a worker is killed in between, the part's message
        is redelivered, and sends the body again. A body that can't be sent at all fails.
        """
        if request.group and isinstance(request.chord, dict):
            self.or_redeliver(request, lambda: self._part_returned(request, state, result))

    def _part_returned(self, request: Any, state: str, result: Any) -> None:
        group_id, task = request.group, self.app.current_worker_task
        if (
            task is not None
            and task.request.id == request.id
            and not is_stored(task, request, state)
        ):
            self.store_result(request.id, result, state, request=request)  # the body needs it
        counted = self.retried(self.count_part, group_id, request.id)
        parts, sent = counted
        size = counted.size or request.chord.get("chord_size")
        if sent or (size is not None and parts < size + counted.extra):
            return
        group = GroupResult.restore(group_id, backend=self)
        body = maybe_signature(request.chord, app=self.app)
        if group is None:
            self._fail_body(body, f"GroupResult {group_id} is gone")
        else:
            leaves = list(_leaves(group))
            if size is None and parts < len(leaves) + counted.extra:
                return
            if counted.extra or not leaves:
                joined = [part for part in self.parts(group_id) if part not in {*leaves}]
            else:
                joined = []
            self._send_body(group, leaves, joined, body)
        self.retried(self.mark_sent, group_id)

    def _send_body(self, group: Any, leaves: list[str], joined: list[str], body: Any) -> None:
        conf = self.app.conf
        try:
            # All results were stored, so this waits only for one that is gone.
            found = dict(self.get_many([*leaves, *joined], timeout=conf.result_chord_join_timeout))
        except TimeoutError as exc:
            self._fail_body(body, f"results of its parts are gone: {exc}", exc)
            return
        for task_id in (*leaves, *joined):
            meta = found[task_id]
            if meta["status"] in states.PROPAGATE_STATES:
                cause = meta["result"]
                self._fail_body(body, f"Dependency {task_id} raised {_repr(cause)}", cause)
                return
        joined.sort(key=lambda task_id: found[task_id].get("group_index") or 0)
        try:
            body.delay([*_values(group, found), *(found[task_id]["result"] for task_id in joined)])
        except (Reject, SoftTimeLimitExceeded):
            raise
        except (OperationalError, OSError, BackendError, BrokerUnavailable, StoreError) as exc:
            if self.app.current_worker_task is None or self.app.current_worker_task.acks_late:
                # Not counted as sent: this part is redelivered, and tries again.
                raise Reject(exc, requeue=True) from exc
            self._fail_body(body, f"Callback error: {_repr(exc)}", exc)
        except Exception as exc:
            self._fail_body(body, f"Callback error: {_repr(exc)}", exc)

    def _fail_body(self, body: Any, reason: str, cause: Any = None) -> None:
        logger.warning("the chord with the body %s failed: %s", body.task, reason)
        if not isinstance(body, group_signature) and not body.id:
            body.set(task_id=uuid())
        try:
            raise ChordError(reason) from (cause if isinstance(cause, Exception) else None)
        except ChordError as exc:  # Celery reads the traceback of the exception being handled
            self.chord_error_from_stack(body, exc)


def _leaves(group: Any) -> Iterator[str]:
    """The ids of the group's tasks, nested groups' included."""
    for result in group.results:
        if isinstance(result, ResultSet):
            yield from _leaves(result)
        else:
            yield result.id


def _values(group: Any, found: Mapping[str, Any]) -> list[Any]:
    """What the group's tasks returned, nested as they are."""
    return [
        _values(result, found) if isinstance(result, ResultSet) else found[result.id]["result"]
        for result in group.results
    ]


def _repr(exc: Any) -> str:
    return repr(failures.presentable(exc)) if isinstance(exc, BaseException) else repr(exc)
