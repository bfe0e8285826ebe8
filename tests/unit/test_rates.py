"""Settings of a Redis that counts rates; how it counts: tests/acceptance/test_rates.py."""

from __future__ import annotations

from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import setup
from gwi_celery.errors import ConfigurationError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limits_url": "http://x"}, "write redis://"),
        ({"limits_url": "redis://x:notaport"}, "can't be used"),
        ({"limits_unavailable": "fail"}, "limits_unavailable is 'fail'"),
    ],
)
def test_settings_that_can_not_be_used(settings: dict[str, str], says: str) -> None:
    name = f"embedded://:memory:/{uuid4().hex}"
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    with pytest.raises(ConfigurationError, match=says):
        setup(app, broker_url=name, store_url=name, **settings)


def test_the_url_is_no_ones_to_see() -> None:
    name = f"embedded://:memory:/{uuid4().hex}"
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    made = setup(app, broker_url=name, store_url=name, limits_url="redis://:hunter2@127.0.0.1:1")
    assert "hunter2" not in repr(made)
