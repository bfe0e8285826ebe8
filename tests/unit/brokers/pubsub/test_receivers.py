"""What is done in the background for receivers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gwi_celery.brokers.pubsub.receivers import Receivers
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerUnavailable, ConfigurationError


@pytest.mark.parametrize("error", [BrokerUnavailable, ConfigurationError])
def test_a_reader_tries_again_after_its_queue_could_not_be_recreated(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may have made it meanwhile, with other settings."""

    def recover(source: Source) -> None:
        raise error("not now")

    def run(job: Callable[[], object]) -> None:
        job()

    fakes: Any = (
        SimpleNamespace(topology=SimpleNamespace(recover=recover)),
        SimpleNamespace(run=run),
    )
    woken: list[bool] = []
    with caplog.at_level(logging.WARNING):
        Receivers(*fakes).recover(Source("s", "q", None), then=lambda: woken.append(True))
    assert woken == [True]
    assert "queue 'q' is gone and can't be recreated yet: not now" in caplog.text
