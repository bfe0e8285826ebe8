"""``python -m tests.twins [pytest's arguments]``: the contract suites on the strict twins.

Both twins run with their faults on, Firestore's with more of them than by default: so the suites see
what the emulators never do. What a switch would break is listed in ``OFF``, each with its reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from gwi_celery.testing.emulators import start_firestore
from gwi_celery.testing.twin import start_firestore_twin, start_twin

#: Switches of the Pub/Sub twin that the suites aren't run with.
OFF: dict[str, Any] = {
    # A test counts messages exactly, and a publish that failed after its effect may be a copy.
    "faults": 0,
    "early_expiry": 0,
}
#: Rates of the Firestore twin: each must be survived without a test's noticing. A quota is told to the
#: caller, so it can't be among them.
FIRESTORE: dict[str, Any] = {"aborted": 0.03, "faults": 0.03, "late": 0.03, "exhausted": 0}

SUITES = ["tests/contract"]


def main(arguments: list[str]) -> int:
    with (
        start_firestore(fresh=True) as emulator,
        start_firestore_twin(emulator.endpoint, **FIRESTORE) as firestore,
        start_twin(**OFF) as pubsub,
    ):
        env = {**os.environ, **firestore.environ, **pubsub.environ}
        command = [sys.executable, "-m", "pytest", "-m", "emulator", *SUITES, *arguments]
        status = subprocess.run(command, check=False, env=env).returncode
        for twin in (firestore, pubsub):
            print(f"{twin.kind}: {twin.cost()}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
