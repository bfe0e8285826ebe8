"""The signs of those who read another connection's temporary queue."""

from __future__ import annotations

from typing import Any

import pytest

from gwi_celery.brokers.pubsub.readers import Readers
from gwi_celery.errors import BrokerUnavailable


class _Admin:
    def __init__(self) -> None:
        self.available = False
        self.made: list[str] = []

    def sign(self, path: str, labels: dict[str, str], expiration: int) -> None:
        if not self.available:
            raise BrokerUnavailable("it is down")
        self.made.append(path)


class _Jobs:
    def run(self, *args: Any) -> None:
        pass


def test_a_sign_that_could_not_be_made_is_made_the_next_time() -> None:
    """Without it the queue would be deleted under this reader."""
    admin = _Admin()
    fakes: Any = (admin, _Jobs())
    readers = Readers(*fakes)
    with pytest.raises(BrokerUnavailable):
        readers.join("projects/p/subscriptions/gwi-q")
    admin.available = True
    readers.join("projects/p/subscriptions/gwi-q")
    [sign] = admin.made
    assert sign.startswith("projects/p/subscriptions/gwi-q~u")
