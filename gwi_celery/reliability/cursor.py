"""Progress inside a loop."""

from __future__ import annotations

import time
from typing import Any, Protocol

from gwi_celery.errors import CursorWentBack
from gwi_celery.shield import shielded
from gwi_celery.text import shown


class _Job(Protocol):
    def check(self) -> None:
        """Raise what should stop the job."""

    def save_cursor(self, name: str, value: Any, version: int) -> None:
        """Record the cursor's value."""


class Cursor:
    """Progress inside a loop. ``value`` is where to resume; ``advance`` moves it, never back."""

    def __init__(
        self,
        name: str,
        value: Any,
        version: int = 0,
        *,
        job: _Job | None = None,
        save_every: float = 0.0,
    ) -> None:
        self._job = job
        self._name = name
        self._value = value
        self._version = version
        self._save_every = save_every
        self._saved_at = time.monotonic()
        self._dirty = False

    @property
    def value(self) -> Any:
        return self._value

    def advance(self, value: Any) -> None:
        """Everything before ``value`` is done. Raises CursorWentBack, and all that ``check`` does."""
        try:
            back = _comparable(value) < _comparable(self._value)
        except TypeError:
            raise CursorWentBack(
                f"cursor {self._name!r} is at {shown(self._value)} and can't be compared with "
                f"{shown(value)}: use numbers, texts, or lists of them"
            ) from None
        if back:
            raise CursorWentBack(
                f"cursor {self._name!r} is at {shown(self._value)} and can't go back to "
                f"{shown(value)}: advance it to what comes later, or use checkpoint()"
            )
        self._value = value
        self._dirty = True
        if self._job is None:
            return
        if time.monotonic() - self._saved_at >= self._save_every:
            self.save()
        self._job.check()

    @shielded
    def save(self) -> None:
        """Save now, whatever ``save_every`` says."""
        if self._job is None or not self._dirty:
            return
        self._job.save_cursor(self._name, self._value, self._version + 1)
        self._version += 1
        self._saved_at = time.monotonic()
        self._dirty = False


def _comparable(value: Any) -> Any:
    """The value with tuples as lists, as JSON has them."""
    return [_comparable(item) for item in value] if isinstance(value, (list, tuple)) else value
