"""Rates that Redis counts instead of the store, by the ``limits`` library: exactly, in a moving window.

Jobs at once (``max_running``) stay in the store: their places are leased with the job's lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from gwi_celery import forks
from gwi_celery.errors import ConfigurationError
from gwi_celery.stores.base import Limited
from gwi_celery.stores.limits import LimitRef

logger = logging.getLogger(__name__)

#: Seconds that Redis has to answer. On SQLite a claim holds up others meanwhile.
_TIMEOUT: Final = 1.0
#: Seconds for which Redis isn't asked again once it hasn't answered.
_LEFT_ALONE: Final = 2.0
#: Seconds that a job waits, at least, while Redis can't count it.
_WAIT: Final = 5.0


class RedisRates:
    """Counts the starts of jobs. Safe to use from any thread, and after a fork.

    Args:
        url: ``redis://``, ``rediss://`` or ``redis+unix://``.
        let_pass: Whether jobs begin uncounted while Redis is unavailable, rather than wait.

    Raises ConfigurationError for a URL that can't be used, and without the extra ``redis``.
    """

    def __init__(self, url: str, *, let_pass: bool) -> None:
        try:
            from limits import RateLimitItemPerSecond
            from limits.errors import ConfigurationError as Unusable
            from limits.errors import StorageError
            from limits.storage import storage_from_string
            from limits.strategies import MovingWindowRateLimiter
        except ImportError as exc:
            raise ConfigurationError(
                "limits_url needs the extra redis: pip install 'gwi-celery[redis]'"
            ) from exc
        if not url.startswith(("redis://", "rediss://", "redis+unix://")):
            scheme = url.partition(":")[0]
            raise ConfigurationError(
                f"limits_url begins with {scheme!r}: write redis://host:6379/0"
            )
        times = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT}
        try:
            storage = storage_from_string(url, wrap_exceptions=True, **times)
        except (Unusable, ValueError, StorageError) as exc:
            raise ConfigurationError(
                f"limits_url can't be used ({type(exc).__name__}): write redis://host:6379/0"
            ) from exc
        self._limiter = MovingWindowRateLimiter(storage)
        self._item: Any = RateLimitItemPerSecond
        self._failure = StorageError
        self._let_pass = let_pass
        self._lock = forks.lock()
        self._alone_until = 0.0

    def __call__(self, limits: Sequence[LimitRef]) -> Limited | None:
        """Count one start for each limit and return None; if one is used up, return that instead."""
        try:
            return self._counted(limits)
        except self._failure as exc:
            cause = type(exc.storage_error).__name__
            with self._lock:
                self._alone_until = time.monotonic() + _LEFT_ALONE
            how = "jobs begin uncounted" if self._let_pass else "jobs wait"
            logger.warning(
                "Redis, which counts rates of limits, is unavailable (%s): %s", cause, how
            )
            return self._uncounted(limits)

    def used(self, limit: LimitRef) -> int | None:
        """Starts that count now; None if Redis doesn't answer."""
        if time.monotonic() < self._alone_until:
            return None
        item = self._item_of(limit)
        try:
            return int(item.amount - self._limiter.get_window_stats(item, limit.id).remaining)
        except self._failure:
            with self._lock:
                self._alone_until = time.monotonic() + _LEFT_ALONE
            return None

    def reachable(self) -> bool:
        """Whether Redis answers now."""
        try:
            return bool(self._limiter.storage.check())
        except self._failure:
            return False

    def _counted(self, limits: Sequence[LimitRef]) -> Limited | None:
        if time.monotonic() < self._alone_until:
            return self._uncounted(limits)
        items = [(limit, self._item_of(limit)) for limit in limits]
        if len(items) > 1:  # a start counted for one is wasted if another is used up
            for limit, item in items:
                if not self._limiter.test(item, limit.id):
                    return self._used_up(limit, item)
        for limit, item in items:
            if not self._limiter.hit(item, limit.id):
                return self._used_up(limit, item)
        return None

    def _item_of(self, limit: LimitRef) -> Any:
        assert limit.rate is not None
        return self._item(limit.rate.amount, int(limit.rate.seconds), namespace="gwi")

    def _used_up(self, limit: LimitRef, item: Any) -> Limited:
        stats = self._limiter.get_window_stats(item, limit.id)
        left = max(stats.reset_time - time.time(), 0.0)
        return Limited(limit, item.amount - stats.remaining, retry_after=left)

    def _uncounted(self, limits: Sequence[LimitRef]) -> Limited | None:
        if self._let_pass:
            return None
        return Limited(limits[0], 0, _WAIT, why="Redis, which counts it, is unavailable")
