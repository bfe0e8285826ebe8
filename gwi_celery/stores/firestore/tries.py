"""Retries of a write that was refused, or whose answer was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from gwi_celery.backoff import jitter
from gwi_celery.errors import StoreUnavailable
from gwi_celery.firestore.client import Conflict, Unsettled

#: Tries of one write. Before each but the first the documents are read, so another conflict means that
#: somebody has changed them since.
_TRIES: Final = 8
#: Pause before the third try and those after it, seconds: a random share of it, and it doubles.
_PAUSE: Final = 0.01


class Tries:
    """The tries of one write. Raises StoreUnavailable after the last one.

    Args:
        doing: What is tried, for that error.
        look: Called before each try but the first, to read the documents again.
    """

    def __init__(self, doing: str, look: Callable[[], None] | None = None) -> None:
        self._doing = doing
        self._look = look
        self._made = 0
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._made >= _TRIES:
            raise StoreUnavailable(f"could not {self._doing}: {self._failure}") from self._failure
        if self._made > 1:
            most = _PAUSE * 2.0 ** (self._made - 2)
            time.sleep(jitter(most, 0.0, 1.0))
        if self._made and self._look is not None:
            self._look()
        self._made += 1
        return self._made

    @contextmanager
    def once(self) -> Iterator[None]:
        """Around a commit: if it is refused, or gets no answer, the loop goes on to the next try."""
        try:
            yield
        except (Conflict, Unsettled) as exc:
            self._failure = exc
