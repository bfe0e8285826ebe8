"""The same state machine on Firestore, with requests lost, answers lost, late arrivals and aborts.

What the workers see must be what it is without them: every operation converges, whatever became of
each of its calls. ``FIRESTORE_EXAMPLES`` in the environment sets the number of sequences tried.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from gwi_celery.stores.firestore import FirestoreStore
from tests.clocks import FakeClock
from tests.contract.test_store_stateful import StoreMachine
from tests.firestore_wire import FAULTS, Wire
from tests.machine import examples

pytestmark = pytest.mark.emulator

#: Few enough in a row that a store which goes on trying gets through.
FAULT_LISTS = st.lists(st.sampled_from([None, *FAULTS]), min_size=1, max_size=3)

EXAMPLES = int(os.environ.get("FIRESTORE_EXAMPLES", examples(24)))


class Faulty:
    """A store whose next change runs into faults; what only looks is spared."""

    CHANGES = frozenset(
        {
            *("claim", "renew", "save", "finish", "release"),
            *("force_release", "cancel", "put_value", "cleanup"),
        }
    )

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._store: FirestoreStore = wire.store()
        self.ahead: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self.CHANGES:
            return method

        def changing(*args: Any, **kwargs: Any) -> Any:
            self._wire.faults, self.ahead = iter(self.ahead), []
            try:
                return method(*args, **kwargs)
            finally:
                self._wire.faults = iter(())

        return changing

    def close(self) -> None:
        self._store.close()
        self._wire.close()


class FirestoreMachine(StoreMachine):
    unit = 1000.0
    store: Faulty

    def open(self) -> None:
        self.wire = Wire()
        self.clock = FakeClock(self.wire.now() / 1_000_000)
        self.store = Faulty(self.wire)

    def move_clock(self, seconds: float) -> None:
        super().move_clock(seconds)
        self.wire.advance(seconds)

    @rule(faults=FAULT_LISTS)
    def go_wrong(self, faults: list[str | None]) -> None:
        self.store.ahead = faults


def test_any_sequence_whatever_becomes_of_its_calls(firestore_emulator: Any) -> None:
    run_state_machine_as_test(
        FirestoreMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
