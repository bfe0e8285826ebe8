"""Guards user code that Celery runs in a worker's main process.

Examples are ``on_failure`` and similar handlers after a hard time limit or a lost child, and
``__str__`` of exceptions. Errors of this code, and errors caused by a message, must neither end the
worker nor leave the message leased for as long as the worker lives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request

from gwi_celery.errors import BrokerError
from gwi_celery.transport import handover

_CELERYS = "celery.worker.request:Request"


class GuardedRequest(Request):
    """Celery's request. Errors raised in it settle the message and are logged.

    Errors of the broker are raised unchanged: Celery reconnects.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Celery makes a subclass for each task, which defines these methods again.
        for name, guard in (("execute_using_pool", _begun), ("on_success", _ended)):
            if name in vars(cls):
                setattr(cls, name, guard(vars(cls)[name]))

    def on_accepted(self, *args: Any, **kwargs: Any) -> Any:
        # Only now: what still waits in a pool of threads when the worker stops was not attempted.
        self._count_attempt()
        return self._guarded(super().on_accepted, *args, **kwargs)

    def on_timeout(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(super().on_timeout, *args, **kwargs)

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(super().on_failure, *args, **kwargs)

    def _count_attempt(self) -> None:
        if self.task.acks_late and not self.acknowledged:
            self.message.begin()

    def _guarded(self, end: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return end(*args, **kwargs)
        except BrokerError:
            raise
        except Exception as exc:
            self.settle_error(exc)

    def settle_error(self, exc: Exception) -> None:
        """Settle the message after an error in the main process."""
        if not self.acknowledged:
            handover.settle_error(self.message, exc, reject=self.reject)
        else:
            handover.log_error(self.message, exc)


def guarded(request: Any) -> Any:
    """The guarded version of a task's request class, given as a class or by name."""
    if request == _CELERYS:
        return GuardedRequest
    cls = symbol_by_name(request)
    if issubclass(cls, GuardedRequest):
        return request
    return type(cls.__name__, (GuardedRequest, cls), {})


def _ended(end: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(end)
    def on_success(self: GuardedRequest, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(functools.partial(end, self), *args, **kwargs)

    return on_success


def _begun(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_using_pool(self: GuardedRequest, pool: Any, **kwargs: Any) -> Any:
        if pool.uses_semaphore:
            # A pool process reports the start only afterwards, and the worker may be killed before.
            self._count_attempt()
        try:
            return execute(self, pool, **kwargs)
        except (BrokerError, TaskRevokedError):
            raise
        except Exception as exc:
            if self.time_start is None:  # the pool refused it because of what the message asks for
                self.message.begun = False
            self.settle_error(exc)
            # Tells Celery that the place in the pool is free again.
            raise TaskRevokedError(self.id) from exc

    return execute_using_pool
