"""What this package's result backends add to Celery's key-value backends, whatever the storage.

A chord counts each part once however often its message is redelivered, and its body is sent at least
once, or failed; a result past its ``result_expires`` counts as gone when read; a SUCCESS is never
overwritten, and another end only by an end; and a result that can't be stored is not lost: its message
is redelivered.
"""

from __future__ import annotations

import itertools
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from celery import states
from celery.backends.base import EXCEPTION_ABLE_CODECS, KeyValueStoreBackend
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
from celery.utils.time import get_exponential_backoff_interval
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.encoding import bytes_to_str, ensure_bytes
from kombu.utils.uuid import uuid

from gwi_celery import blobs, failures
from gwi_celery.backends import tenants
from gwi_celery.errors import BrokerUnavailable, NotSerializable, StoreError, StoreUnavailable
from gwi_celery.stores.base import Store, StoredResult

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Retries of an operation while the store is unavailable, unless the app sets them: 5 s at most, with
#: Celery's pauses.
_RETRIES = 8


#: Size of a chord whose header is being made: more parts than there will ever be.
_SIZE_TO_COME = 2**40
#: Share of a result's life after which a chord's next part renews all of the chord: an hour of a day.
RENEW_CHORD_AFTER = 1 / 24


class Counted(tuple[int, bool]):
    """How many parts of a chord were counted, how many are expected, and whether its body was sent."""

    #: How many parts there will be, once Celery has told it, and how many joined later.
    size: int | None
    extra: int

    def __new__(cls, parts: int, sent: bool, *, size: int | None = None, extra: int = 0) -> Counted:
        counted = super().__new__(cls, (parts, sent))
        counted.size, counted.extra = size, extra
        return counted


class ReliableBackend(KeyValueStoreBackend):
    """The common part. Each subclass says how it keeps values and counts.

    Its methods are Celery's hooks, hence their number.
    """

    supports_autoexpire = True
    supports_native_join = True
    persistent = True
    key_t = bytes_to_str
    always_retry: bool

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("expires_type", int)
        super().__init__(app=app, url=url, **kwargs)
        if not self.always_retry:
            # A store that is briefly unavailable is worth some retries.
            self.always_retry, self.max_retries = True, _RETRIES

    # --- each kind's own ----------------------------------------------------------------------

    @abstractmethod
    def put(self, key: str, value: Any, state: str | None, expires: Any, request: Any) -> None:
        """Keep ``value``, of a task's result in that ``state``, for ``expires`` seconds (0: for good).

        With a ``state``, a SUCCESS that has not expired stays as it is, and so does any other end
        unless this is one, too. ``request`` is the task's, if it is at hand.
        """

    @abstractmethod
    def open_chord(self, group_id: str, key: str, value: Any) -> None:
        """Keep ``value``, of a chord's group, as ``key``. A finished chord starts anew."""

    @abstractmethod
    def keep_chord_size(self, group_id: str, size: int) -> None:
        """Keep how many parts the chord waits for."""

    @abstractmethod
    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """One more part joins the chord."""

    @abstractmethod
    def count_part(self, group_id: str, part: str) -> Counted:
        """Count one part of a chord, once, and keep all of the chord as long as a new result."""

    @abstractmethod
    def parts(self, group_id: str) -> list[str]:
        """The ids of the parts that were counted."""

    @abstractmethod
    def mark_sent(self, group_id: str) -> None:
        """The chord's body was sent, or failed."""

    # --- values -------------------------------------------------------------------------------

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, StoreUnavailable)

    def retried(self, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call it, retrying while the store is unavailable as Celery would."""
        for retries in itertools.count(1):
            try:
                return operation(*args, **kwargs)
            except Exception as exc:
                if not self.exception_safe_to_retry(exc) or retries > self.max_retries:
                    raise
            pause = get_exponential_backoff_interval(
                self.base_sleep_between_retries_ms, retries, self.max_sleep_between_retries_ms, True
            )
            time.sleep(pause / 1000)
        raise AssertionError("unreachable")

    def set(self, key: str, value: Any) -> None:
        self.put(key, value, None, self.expires, None)

    # --- results ------------------------------------------------------------------------------

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        if getattr(request, "_gwi_stored", None) == state and request.id == task_id:
            return self.encode_result(result, state)
        return self._or_come_again(
            request,
            lambda: super(ReliableBackend, self).store_result(
                task_id, result, state, traceback=traceback, request=request, **kwargs
            ),
        )

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        meta = self._meta(task_id, result, state, traceback, request)
        self.put(self.get_key_for_task(task_id), self.encode(meta), state, self.expires, request)
        return result

    def _meta(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        tenant = tenants.tenant_of(request)
        if tenant is not None:
            meta[tenants.FIELD] = tenant
        if getattr(request, "group_index", None) is not None:
            meta["group_index"] = request.group_index  # its place in the results of a chord
        return meta

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        """Celery's own. Raises TaskIdTaken for another tenant's than the id says."""
        return tenants.checked(task_id, super().get_task_meta(task_id, cache=cache))

    @staticmethod
    def log_taken(key: str) -> None:
        """What was to be written under ``key`` is not: it is another tenant's."""
        logger.error(
            "a result is not kept: its task id (%s) has one of another tenant's; use ids that no two "
            "tenants share",
            key,
        )

    def _or_come_again(self, request: Any, operation: Callable[[], Any]) -> Any:
        """Call it; if it fails while a message is being handled, have that message redelivered."""
        try:
            return operation()
        except (EncodeError, Reject, SoftTimeLimitExceeded):
            raise  # of a value that has no JSON form, Celery makes a failure
        except Exception as exc:
            if request is not None and self.app.current_worker_task is not None:
                # Acked now, the result would be lost. Redelivered, a reliable job answers
                # from its record.
                why = exc.__cause__ if isinstance(exc, BackendError) and exc.__cause__ else exc
                raise Reject(why, requeue=True) from exc
            raise

    def encode(self, data: Any) -> Any:
        encoded = super().encode(data)
        try:
            blobs.refuse_types(data, encoded, what="it")
        except NotSerializable as exc:
            raise EncodeError(str(exc)) from exc  # which Celery makes a failure
        return encoded

    def encode_result(self, result: Any, state: str) -> Any:
        # Celery's own sees an exception in an Exception only, before 5.7.
        if state in self.EXCEPTION_STATES and isinstance(result, BaseException):
            return self.prepare_exception(result)
        return super().encode_result(result, state)

    def prepare_exception(self, exc: Any, serializer: Any = None) -> Any:
        if (serializer or self.serializer) in EXCEPTION_ABLE_CODECS:
            return super().prepare_exception(failures.presentable(exc), serializer)
        return failures.form(exc)

    def exception_to_python(self, exc: Any) -> Any:
        return failures.rebuild(exc, super().exception_to_python)

    @staticmethod
    def arrived(meta: Any, on_interval: Callable[[], Any] | None) -> Any:
        """A result that was waited for. A parent's failure takes precedence.

        Celery checks the parents at each interval, and both may have failed within one.
        """
        if on_interval and meta["status"] in states.PROPAGATE_STATES:
            on_interval()
        return meta

    def ahead(
        self, task: Any, store: Store, state: str, result: Any, traceback: str | None = None
    ) -> StoredResult | None:
        """What :meth:`store_result` would write at a reliable task's end, for the store to write.

        None if it is to be written as usual: the store keeps its own data elsewhere, nothing is to
        be stored at all, or a callback is to be sent first, so that the result can name it as a
        child, or say that it could not be sent.
        """
        request = task.request
        if not store.keeps_results_of(self.url or ""):
            return None
        if state == states.SUCCESS and (request.callbacks or request.chain):
            return None
        if not _is_stored(task, request, state):
            return None
        try:
            result = self.encode_result(result, state)
            key = self.get_key_for_task(request.id)
            meta = self.encode(self._meta(request.id, result, state, traceback, request))
        except Exception:
            return None  # Celery will get the same error, and handles it
        return StoredResult(
            task_id=request.id,
            key=key,
            state=state,
            meta=ensure_bytes(meta),
            ttl=self.expires or None,
            seen_before=came_before(request),
            version=self.known_version(key),
            tenant=tenants.tenant_of(request),
        )

    @staticmethod
    def mark_stored(request: Any, state: str) -> None:
        """The store has written it: :meth:`store_result` need not."""
        request._gwi_stored = state

    def known_version(self, key: str) -> Any:
        """What this process knows of the stored value; None: nothing."""
        return None

    # --- chords -------------------------------------------------------------------------------

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        self.ensure_chords_allowed()
        group_id, results = header_result_args
        if isinstance(results, _regen):
            # A generator's tasks are sent while it makes them, with ids of their own. Who they are is
            # known as they return; how many, with the last.
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

        It is marked as sent only afterwards: a worker killed in between leaves its message to be
        redelivered, which then sends it. A body that can't be sent at all fails.
        """
        if request.group and isinstance(request.chord, dict):
            self._or_come_again(request, lambda: self._part_returned(request, state, result))

    def _part_returned(self, request: Any, state: str, result: Any) -> None:
        group_id, task = request.group, self.app.current_worker_task
        if (
            task is not None
            and task.request.id == request.id
            and not _is_stored(task, request, state)
        ):
            self.store_result(request.id, result, state, request=request)  # for the body
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
            # All results are stored, so this waits only for one that is gone.
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
        except ChordError as exc:  # Celery takes the traceback from where it is called
            self.chord_error_from_stack(body, exc)


def _leaves(group: Any) -> Iterator[str]:
    """The ids of the tasks in it, those of groups in it too."""
    for result in group.results:
        if isinstance(result, ResultSet):
            yield from _leaves(result)
        else:
            yield result.id


def _values(group: Any, found: Mapping[str, Any]) -> list[Any]:
    """What the tasks of it returned, in its shape."""
    return [
        _values(result, found) if isinstance(result, ResultSet) else found[result.id]["result"]
        for result in group.results
    ]


def _repr(exc: Any) -> str:
    return repr(failures.presentable(exc)) if isinstance(exc, BaseException) else repr(exc)


def came_before(request: Any) -> bool:
    """Whether this message is, or may be, a redelivery or a retry."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(delivery.get("redelivered")) or bool(getattr(request, "retries", 0))


def _is_stored(task: Any, request: Any, state: str) -> bool:
    """Whether Celery would store the result of this request."""
    ignored = request.ignore_result or task.ignore_result
    if ignored and not (state == states.FAILURE and task.store_errors_even_if_ignored):
        return False
    return not request.is_eager or bool(task.store_eager_result)
