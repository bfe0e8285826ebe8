"""What workers and remote control cost of the 6,000 admin calls a minute that a whole project has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from gwi_celery.testing.twin import Twin, start_twin
from gwi_celery.testing.twin.service import _DATA
from tests.machine import PATIENCE
from tests.workers import Worker

pytestmark = pytest.mark.acceptance

#: More than a worker took when it was last looked at; as many start within five minutes as this allows.
STARTING = 30


@pytest.fixture
def twin() -> Iterator[Twin]:
    with start_twin(faults=0, settle=0, name_rest=0) as started:
        yield started


@pytest.fixture
def url(twin: Twin) -> str:
    return f"pubsub://{twin.endpoint}/p?emulator=strict"


def test_a_command_costs_its_caller_a_few_and_the_workers_none(
    jobs: ModuleType, start: Callable[..., Worker], twin: Twin
) -> None:
    workers = [start(pool="solo") for _ in range(2)]
    before = _admin_calls(twin)
    start(pool="solo").stop()
    assert (_admin_calls(twin) - before).total() <= STARTING
    names = [worker.name for worker in workers]
    jobs.app.control.ping(timeout=PATIENCE, destination=names)  # opens the caller's connection
    before = _admin_calls(twin)
    answers = jobs.app.control.ping(timeout=PATIENCE, destination=names)
    assert sorted(name for answer in answers for name in answer) == sorted(names)
    assert _admin_calls(twin) - before == {
        "CreateSubscription": 2,  # of the queue for the answers
        "ListTopicSubscriptions": 1,
        "DeleteSubscription": 2,
    }


def _admin_calls(twin: Twin) -> Counter[str]:
    calls = twin.cost()["rpcs"]
    return Counter({name: calls[name] for name in calls.keys() - _DATA})
