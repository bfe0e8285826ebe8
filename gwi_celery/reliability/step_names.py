"""The names of steps, cursors and values that one attempt has used: each only once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gwi_celery.errors import StepNameReused
from gwi_celery.text import shown


class StepNames:
    """Safe to use from several threads: adding to a set and removing from it are atomic."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def use(self, name: str) -> None:
        """Raises StepNameReused if the name is already used, or is no text or an empty one."""
        self.expect_unused(name)
        self._used.add(name)

    def expect_unused(self, name: object) -> None:
        """Raises StepNameReused, as :meth:`use` does."""
        if not isinstance(name, str) or not name:
            raise StepNameReused(f"a step's name is {shown(name)}: pass a text that is not empty")
        if name in self._used:
            raise StepNameReused(
                f"{name!r} is used twice in one job: steps are named, not counted; give each its own "
                "name (in a loop: f'scan-{i}')"
            )

    @contextmanager
    def free_after_error(self, name: str) -> Iterator[None]:
        """Free the name if an error leaves the block: the step or loop may then be tried again."""
        try:
            yield
        except BaseException:
            self._used.discard(name)
            raise
