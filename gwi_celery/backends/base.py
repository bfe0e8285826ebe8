"""What our result backends add to Celery's key-value backends, wherever they keep their results.

A chord counts each part once however often its message is redelivered, and its body is sent at least
once, or failed; a result past its ``result_expires`` counts as gone when read; a SUCCESS is never
overwritten, and another end only by an end; and a result that can't be stored is not lost: its message
is redelivered.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from celery import states
from celery.backends.base import EXCEPTION_ABLE_CODECS, KeyValueStoreBackend
from celery.canvas import maybe_signature
from celery.exceptions import BackendError, ChordError, Reject, SoftTimeLimitExceeded
from celery.result import GroupResult, allow_join_result
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from gwi_celery import failures
from gwi_celery.errors import NotSerializable, StoreError, StoreUnavailable
from gwi_celery.reliability import blobs
from gwi_celery.stores.base import Store, StoredResult

logger = logging.getLogger(__name__)

#: Times that an operation is tried again while the store is unavailable, unless the app says how often:
#: for 5 s at most, with Celery's pauses.
_RETRIES = 8


class ReliableBackend(KeyValueStoreBackend):
    """The part that is the same everywhere. Each kind says how it keeps a value, and counts."""

    supports_autoexpire = True
    supports_native_join = True
    persistent = True
    key_t = bytes_to_str
    always_retry: bool

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("expires_type", int)
        super().__init__(app=app, url=url, **kwargs)
        if not self.always_retry:
            # A store that is away for a moment is worth some more tries.
            self.always_retry, self.max_retries = True, _RETRIES

    # --- each kind's own ----------------------------------------------------------------------

    @abstractmethod
    def put(self, key: str, value: Any, state: str | None, expires: Any, request: Any) -> None:
        """Keep ``value``, of a task's result in that ``state``, for ``expires`` seconds (0: for good).

        With a ``state``, a SUCCESS that has not expired stays as it is, and so does any other end
        unless this is one, too. ``request`` is the task's, if it is at hand.
        """

    @abstractmethod
    def count_part(self, group_id: str, part: str) -> tuple[int, bool]:
        """Count one part of a chord, once; how many there are now, and if its body was sent."""

    @abstractmethod
    def mark_sent(self, group_id: str) -> None:
        """The chord's body was sent."""

    # --- values -------------------------------------------------------------------------------

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, StoreUnavailable)

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
        return meta

    def _or_come_again(self, request: Any, operation: Callable[[], Any]) -> Any:
        """Do it; or, where a message is being worked on, have that redelivered."""
        try:
            return operation()
        except (EncodeError, Reject, SoftTimeLimitExceeded):
            raise  # of a value that has no JSON form, Celery makes a failure
        except Exception as exc:
            if request is not None and self.app.current_worker_task is not None:
                # Acked now, the result would be lost. Delivered again, a reliable job answers
                # from its record.
                raise Reject(exc, requeue=True) from exc
            raise

    def encode(self, data: Any) -> Any:
        encoded = super().encode(data)
        try:
            blobs.refuse_types(data, encoded, what="it")
        except NotSerializable as exc:
            raise EncodeError(str(exc)) from exc  # which Celery makes a failure
        return encoded

    def prepare_exception(self, exc: Any, serializer: Any = None) -> Any:
        if (serializer or self.serializer) in EXCEPTION_ABLE_CODECS:
            return super().prepare_exception(failures.presentable(exc), serializer)
        return failures.form(exc)

    def exception_to_python(self, exc: Any) -> Any:
        return failures.rebuild(exc, super().exception_to_python)

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
            return None  # Celery will meet with the same, and knows what to do then
        return StoredResult(
            task_id=request.id,
            key=key,
            state=state,
            meta=ensure_bytes(meta),
            ttl=self.expires or None,
            seen_before=came_before(request),
            version=self.known_version(key),
        )

    @staticmethod
    def mark_stored(request: Any, state: str) -> None:
        """The store has written it: :meth:`store_result` need not."""
        request._gwi_stored = state

    def known_version(self, key: str) -> Any:
        """What this process knows of the value that is there; None: nothing."""
        return None

    # --- chords -------------------------------------------------------------------------------

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        self.ensure_chords_allowed()
        self.app.GroupResult(*header_result_args).save(backend=self)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count the part, once; with the last one, send the body.

        It is marked as sent only afterwards: a worker killed in between leaves its message to be
        delivered again, which comes here once more and sends it.
        """
        if request.group:
            self._or_come_again(request, lambda: self._part_returned(request))

    def _part_returned(self, request: Any) -> None:
        group_id = request.group
        counted, sent = self._ensure_retryable(self.count_part, group_id, request.id)
        size = request.chord.get("chord_size")
        if sent or (size is not None and counted < size):
            return
        group = GroupResult.restore(group_id, backend=self)
        body = maybe_signature(request.chord, app=self.app)
        if group is None:
            self._fail_body(body, ChordError(f"GroupResult {group_id} is gone"))
        elif size is None and counted < len(group):
            return
        else:
            self._send_body(group, body)
        self._ensure_retryable(self.mark_sent, group_id)

    def _fail_body(self, body: Any, error: ChordError) -> None:
        try:
            raise error
        except ChordError as exc:  # Celery takes the traceback from where it is called
            self.chord_error_from_stack(body, exc)

    def _send_body(self, group: Any, body: Any) -> None:
        try:
            with allow_join_result():
                results = group.join_native(
                    timeout=self.app.conf.result_chord_join_timeout, propagate=True
                )
        except (StoreError, BackendError):
            raise  # the parts are as they were, and so is the body: this part comes again
        except Exception as exc:
            culprit = next(group._failed_join_report(), None)
            reason = repr(exc) if culprit is None else f"Dependency {culprit.id} raised {exc!r}"
            logger.warning("chord %s failed: %s", group.id, reason)
            error = ChordError(reason)
            error.__cause__ = exc
            self._fail_body(body, error)
            return
        try:
            body.delay(results)
        except OperationalError as exc:
            # Not counted as sent: this part is delivered again, and tries again.
            raise Reject(exc, requeue=True) from exc


def came_before(request: Any) -> bool:
    """Whether a message of this task id was delivered before, or may have been."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(delivery.get("redelivered")) or bool(getattr(request, "retries", 0))


def _is_stored(task: Any, request: Any, state: str) -> bool:
    """Whether Celery would store the result of this request."""
    ignored = request.ignore_result or task.ignore_result
    if ignored and not (state == states.FAILURE and task.store_errors_even_if_ignored):
        return False
    return not request.is_eager or bool(task.store_eager_result)
