"""``python -m tests.twins [pytest's arguments]``: suites of the emulators on the strict twins.

The contracts, the worker suites, the kill tests and the soak. Both twins run with their faults on,
Firestore's with more of them than by default: so the suites see what the emulators never do. What a
switch would break is off, with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.testing.emulators import Emulator, start_firestore, start_pubsub
from gwi_celery.testing.twin import start_firestore_twin, start_twin

#: Switches of the Pub/Sub twin for suites that have real workers do the work.
PUBSUB: dict[str, Any] = {
    # A test counts messages exactly, and a publish that failed after its effect may be a copy.
    "faults": 0,
    "early_expiry": 0,
}
#: And for those in which one connection uses what another made this very moment.
AT_ONCE: dict[str, Any] = {**PUBSUB, "settle": 0, "name_rest": 0}
#: Rates of the Firestore twin: each must be survived without a test's noticing. A quota is told to the
#: caller, so it can't be among them.
FIRESTORE: dict[str, Any] = {"aborted": 0.03, "faults": 0.03, "late": 0.03, "exhausted": 0}

#: Switches, and the suites that run with them.
SUITES: list[tuple[dict[str, Any], list[str]]] = [
    (
        AT_ONCE,
        [
            "tests/contract",
            "tests/pubsub/test_background.py",
            "tests/pubsub/test_control.py",
            "tests/pubsub/test_dead_letters.py",
            "tests/pubsub/test_full_consumers.py",
            "tests/pubsub/test_leases.py",
        ],
    ),
    (
        PUBSUB,
        [
            "tests/pubsub/test_workers.py",
            "tests/pubsub/test_soak.py",
            "tests/acceptance/test_worker.py",
            "tests/acceptance/test_kill.py",
            "tests/acceptance/test_firestore_kill.py",
            "tests/acceptance/test_stopping.py",
        ],
    ),
]


@contextmanager
def own_pubsub() -> Iterator[Emulator]:
    """A Pub/Sub that the test may stop, of the kind that the suites run on."""
    if STRICT_HOST not in os.environ:
        with start_pubsub(fresh=True) as emulator:
            yield emulator
        return
    with start_twin(**PUBSUB) as twin, mock.patch.dict(os.environ, twin.environ):
        yield twin


def main(arguments: list[str]) -> int:
    failed = 0
    with (
        start_firestore(fresh=True) as emulator,
        start_firestore_twin(emulator.endpoint, **FIRESTORE) as firestore,
    ):
        for switches, suites in SUITES:
            with start_twin(**switches) as pubsub:
                env = {**os.environ, **firestore.environ, **pubsub.environ}
                command = [sys.executable, "-m", "pytest", "-m", "emulator", *suites, *arguments]
                failed |= subprocess.run(command, check=False, env=env).returncode
                print(f"{pubsub.kind}: {pubsub.cost()}")
        print(f"{firestore.kind}: {firestore.cost()}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
