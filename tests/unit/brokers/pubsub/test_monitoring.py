"""What is logged where depths can't be read. The answers themselves: tests/pubsub/features."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from gwi_celery.brokers.pubsub.monitoring import Monitoring


def test_one_cause_with_many_texts_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attempts = itertools.count()

    def refuse() -> Any:
        raise ConnectionError(f"attempt {next(attempts)} failed")

    monitoring = Monitoring(1.0)
    client: Any = SimpleNamespace(get=refuse)
    monitoring._client = client
    for _ in range(3):
        assert monitoring.depth(["projects/p/subscriptions/gwi-q"]) is None
    [record] = caplog.records
    assert "attempt 0 failed" in record.getMessage()
