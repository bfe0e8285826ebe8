"""Settles a message whose job has no result now: the job waits, or is handed back, replaced or cancelled.

Nothing is lost: a copy is published before the message is acked, and if that fails the message is nacked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from celery import states
from celery.canvas import maybe_signature
from celery.exceptions import Ignore, Reject

from gwi_celery.backoff import jitter
from gwi_celery.errors import StoreError, StoreUnusable
from gwi_celery.headers import DEADLINE_HEADER, HOLDS_HEADER, PUSH_UNTIL
from gwi_celery.integration import settings_for
from gwi_celery.reliability import compensation
from gwi_celery.reliability.crowds import Crowds
from gwi_celery.stores.values import JobRecord
from gwi_celery.telemetry.events import emit
from gwi_celery.text import safe_error

if TYPE_CHECKING:
    from gwi_celery.reliability.task import ReliableTask

logger = logging.getLogger(__name__)

#: Seconds after its deadline at which a waiting job is looked at once more.
_PAST_DEADLINE: Final = 0.05
#: Longest wait, seconds, for the next place of a rate: an operator may have raised the rate meanwhile.
_LOOK_AGAIN: Final = 300.0

_crowds = Crowds()


class Settling:
    """Settles the message of ``task.request``: its methods raise what Celery acks or nacks it for."""

    def __init__(self, task: ReliableTask) -> None:
        self._task = task
        self._request = task.request

    def wait(
        self,
        exc: Exception,
        why: str,
        *,
        at_most: float | None = None,
        at_least: float = 0.0,
        level: int = logging.INFO,
        behind: str | None = None,
    ) -> NoReturn:
        """Postpone the job without counting anything: publish a delayed copy, then ack this message.

        An eager call can't wait: it raises ``exc``.

        Args:
            why: The reason, for the log.
            at_most: Longest delay, seconds.
            at_least: Shortest delay, seconds.
            level: Of the log's line.
            behind: Id of the lock or limit that it waits for, maybe with others.
        """
        if self._request.is_eager:
            raise exc
        headers = dict(self._request.headers or {})
        holds = int(headers.get(HOLDS_HEADER) or 0)
        settings = settings_for(self._task.app)
        first, longest = settings.contention_delay, settings.max_contention_delay
        if behind is not None:
            longest = _crowds.longest_wait(behind, self._request.id, first, longest)
        delay = min(first * 2 ** min(holds, 16), longest)
        if at_most is not None:
            delay = min(delay, max(at_most, first))
        # Those that wait for one thing are spread, all the more the longer they have waited.
        delay = jitter(delay, 0.8, 1.2) + jitter(min(at_least, _LOOK_AGAIN), 1.0, 1.2)
        deadline = headers.get(DEADLINE_HEADER)
        if deadline is not None and (left := float(deadline) - time.time()) > 0:
            delay = min(delay, left + _PAST_DEADLINE)
        headers[HOLDS_HEADER] = holds + 1
        logger.log(level, "%s[%s] waits %.1f s: %s", self._task.name, self._request.id, delay, why)
        self._publish_copy(delay, headers)
        raise Ignore(why)

    def store_unavailable(self, exc: StoreError) -> NoReturn:
        """Postpone a pulled job; nack a pushed one, whose redelivery Pub/Sub itself slows down."""
        why = f"the store can't be used ({exc})"
        if PUSH_UNTIL in (self._request.properties or {}):
            logger.warning("%s[%s] is refused: %s", self._task.name, self._request.id, why)
            raise Reject(exc, requeue=True) from exc
        unusable = isinstance(exc, StoreUnusable)  # somebody has to do something
        self.wait(exc, why, level=logging.ERROR if unusable else logging.WARNING)

    def hand_back(self, exc: BaseException) -> NoReturn:
        """Publish a copy that is due at once, for another worker."""
        emit("stopping")
        logger.info("%s[%s] is handed back: %s", self._task.name, self._request.id, exc)
        self._publish_copy(0.0, self._request.headers or {})
        raise Ignore(str(exc)) from None

    def replace(self, signature: Any) -> Any:
        """Send the job's replacement, under this message's id and with its callbacks.

        An eager call has no message: it runs the replacement, and returns its result.
        """
        self._request._gwi_replaced = True
        try:
            return self._task.replace(maybe_signature(signature, app=self._task.app))
        except Ignore:
            raise
        except Exception as exc:
            if self._request.is_eager:
                raise
            # Nothing is lost: this message is redelivered, and sends it then.
            raise Reject(exc, requeue=True) from exc

    def cancelled(self, record: JobRecord, reason: str) -> NoReturn:
        """Report the job as revoked. Also send the task that undoes it, if the canceller could not."""
        request = self._request
        if not request.is_eager:
            try:
                compensation.ask(self._task, record, request.args, request.kwargs)
            except Exception as exc:
                # Nothing is lost: this message is redelivered, and sends it then.
                raise Reject(exc, requeue=True) from exc
        emit("cancelled")
        if not request.is_eager:
            self._task.backend.mark_as_revoked(
                request.id, reason, request=request, store_result=not self._task.ignore_result
            )
        raise Ignore(reason)

    def _publish_copy(self, delay: float, headers: Mapping[str, Any]) -> None:
        request = self._request
        self._show_pending()
        signature = self._task.signature_from_request(
            request,
            request.args,
            request.kwargs,
            countdown=delay,
            retries=request.retries,
            headers=dict(headers),
        )
        try:
            signature.apply_async(add_to_parent=False)
        except Exception as exc:
            # Nothing is lost: this message is redelivered.
            raise Reject(exc, requeue=True) from exc

    def _show_pending(self) -> None:
        """Replace STARTED or PROGRESS by PENDING, before another worker may start the copy.

        An error of the backend is only logged.
        """
        task, request = self._task, self._request
        shown = task.track_started or "_gwi_shown" in vars(request)
        if not shown or request.ignore_result or task.ignore_result:
            return
        try:
            task.backend._store_result(request.id, None, states.PENDING, request=request)
        except Exception as exc:
            logger.info(
                "%s[%s] still shows that it runs: %s", task.name, request.id, safe_error(exc)
            )
