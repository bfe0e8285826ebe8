"""A fixture for eager tests alone: ``pytest_plugins = ["gwi_celery.testing.eager"]``.

With ``task_always_eager``, and in ``apply()``, jobs are kept in this process's memory. Each test begins
with an empty one, so that no other test's job answers its calls.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gwi_celery.integration import forget_eager_jobs


@pytest.fixture(autouse=True)
def gwi_eager_jobs() -> Iterator[None]:
    """Forget the jobs of eager calls before and after each test."""
    forget_eager_jobs()
    yield
    forget_eager_jobs()
