"""What this package's result backends add to Celery's: results, whatever the storage.

A result older than ``result_expires`` counts as gone. A SUCCESS is never overwritten, and another final
state only by a final state. A result that can't be stored is not lost: its message is redelivered.
"""

from __future__ import annotations

import itertools
import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from celery import states
from celery.backends.base import EXCEPTION_ABLE_CODECS, KeyValueStoreBackend
from celery.exceptions import (
    BackendError,
    Reject,
    SoftTimeLimitExceeded,
)
from celery.utils.time import get_exponential_backoff_interval
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from gwi_celery import blobs, failures
from gwi_celery.backends import tenants
from gwi_celery.errors import NotSerializable, StoreUnavailable
from gwi_celery.stores.base import Store
from gwi_celery.stores.values import StoredResult

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Retries of an operation while the store is unavailable, unless the app sets them. With Celery's pauses
#: they take at most 5 s.
_RETRIES = 8


class ReliableResults(KeyValueStoreBackend):
    """A subclass implements how values are kept."""

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

    @abstractmethod
    def put(self, key: str, value: Any, state: str | None, expires: Any, request: Any) -> None:
        """Keep ``value`` for ``expires`` seconds (0 or None: for good).

        Args:
            state: That of the task whose result this is. A stored SUCCESS that has not expired is never
                replaced, and another final state only by a final state. None: replace whatever is stored.
            request: The task's, if it is known. Another tenant's result is never replaced.
        """

    # --- values -------------------------------------------------------------------------------

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, StoreUnavailable)

    def retried(self, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call ``operation``; while the store is unavailable, retry with Celery's pauses."""
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
        return self.or_redeliver(
            request,
            lambda: super(ReliableResults, self).store_result(
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
        """As Celery's. Raises TaskIdTaken if the result belongs to another tenant than the id's."""
        return tenants.checked(task_id, super().get_task_meta(task_id, cache=cache))

    @staticmethod
    def log_taken(key: str) -> None:
        """Log that a result was not written, because another tenant has one under ``key``."""
        logger.error(
            "a result is not kept: another tenant has one under the same task id (%s); use ids that no "
            "two tenants share",
            key,
        )

    def or_redeliver(self, request: Any, operation: Callable[[], Any]) -> Any:
        """Call ``operation``. If it fails while a message is handled, have that message redelivered."""
        try:
            return operation()
        except (EncodeError, Reject, SoftTimeLimitExceeded):
            raise  # EncodeError, of a value that has no JSON form: Celery stores a failure
        except Exception as exc:
            if request is not None and self.app.current_worker_task is not None:
                # If the message were acked now, the result would be lost. When it is redelivered, a
                # reliable job answers from its record.
                why = exc.__cause__ if isinstance(exc, BackendError) and exc.__cause__ else exc
                raise Reject(why, requeue=True) from exc
            raise

    def encode(self, data: Any) -> Any:
        encoded = super().encode(data)
        try:
            blobs.refuse_types(data, encoded, what="it")
        except NotSerializable as exc:
            raise EncodeError(str(exc)) from exc  # which Celery stores as a failure
        return encoded

    def encode_result(self, result: Any, state: str) -> Any:
        # Before 5.7 Celery's own encodes no other BaseException than an Exception.
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
        """The result that was waited for, unless a parent has failed: that takes precedence.

        Celery checks the parents at each interval, and the parent may have failed within the last one.
        """
        if on_interval and meta["status"] in states.PROPAGATE_STATES:
            on_interval()
        return meta

    def ahead(
        self, task: Any, store: Store, state: str, result: Any, traceback: str | None = None
    ) -> StoredResult | None:
        """What :meth:`store_result` would write at a reliable task's end, for the store to write.

        None if it must be written as usual: the store keeps its data elsewhere; or nothing is to be
        stored; or a callback must be sent first, so that the result can name it as a child, or say that
        it could not be sent.
        """
        request = task.request
        if not store.keeps_results_of(self.url or ""):
            return None
        if state == states.SUCCESS and (request.callbacks or request.chain):
            return None
        if not is_stored(task, request, state):
            return None
        try:
            result = self.encode_result(result, state)
            key = self.get_key_for_task(request.id)
            meta = self.encode(self._meta(request.id, result, state, traceback, request))
        except Exception:
            return None  # Celery will meet the same error, and handles it
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
        """Note that the store has written the result: :meth:`store_result` need not."""
        request._gwi_stored = state

    def known_version(self, key: str) -> Any:
        """The version of the stored value, if this process knows it."""
        return None


def came_before(request: Any) -> bool:
    """Whether this message is, or may be, a redelivery or a retry."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(delivery.get("redelivered")) or bool(getattr(request, "retries", 0))


def is_stored(task: Any, request: Any, state: str) -> bool:
    """Whether Celery would store the result of this request."""
    ignored = request.ignore_result or task.ignore_result
    if ignored and not (state == states.FAILURE and task.store_errors_even_if_ignored):
        return False
    return not request.is_eager or bool(task.store_eager_result)
