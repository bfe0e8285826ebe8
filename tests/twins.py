"""``python -m tests.twins [SUITES] [pytest's arguments]``: suites of the emulators on the strict twins.

The contracts, the worker suites, the kill tests and the soak; or only the files, folders and tests that
are named. Both twins run with their faults on, Firestore's with more of them than by default: so the
suites see what the emulators never do. What a switch would break is off, with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import pytest

from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.testing.emulators import Emulator, start_firestore, start_pubsub
from gwi_celery.testing.twin import start_firestore_twin, start_twin

#: Switches of the Pub/Sub twin for suites that have real workers do the work.
PUBSUB: dict[str, Any] = {
    # A test counts messages exactly, and a publish that failed after its effect may be a copy.
    "faults": 0,
    "early_expiry": 0,
}
#: And for those that count calls: what isn't found yet is asked for again.
AT_ONCE: dict[str, Any] = {**PUBSUB, "settle": 0, "name_rest": 0}
#: More than by default, for suites that ask only what holds whatever happens: nothing is lost, no
#: finished step runs twice, there is one outcome.
OFTEN: dict[str, Any] = {"faults": 0.01, "early_expiry": 0.01}
#: Rates of the Firestore twin: each must be survived without a test's noticing. A quota is told to the
#: caller, so it can't be among them.
FIRESTORE: dict[str, Any] = {"aborted": 0.03, "faults": 0.03, "late": 0.03, "exhausted": 0}

#: Switches, and the suites that run with them; a single test, not with its suite's.
SUITES: list[tuple[dict[str, Any], list[str]]] = [
    (AT_ONCE, ["tests/pubsub/test_control.py::test_a_ping_is_a_few_rpcs"]),
    (
        PUBSUB,
        [
            "tests/contract",
            "tests/pubsub/test_background.py",
            "tests/pubsub/test_control.py",
            "tests/pubsub/test_dead_letters.py",
            "tests/pubsub/test_full_consumers.py",
            "tests/pubsub/test_leases.py",
            "tests/pubsub/test_workers.py",
            "tests/pubsub/test_soak.py",
            "tests/acceptance/test_worker.py",
            "tests/acceptance/test_stopping.py",
        ],
    ),
    (OFTEN, ["tests/acceptance/test_kill.py", "tests/acceptance/test_firestore_kill.py"]),
]


@contextmanager
def own_pubsub(switches: dict[str, Any] = PUBSUB) -> Iterator[Emulator]:
    """A Pub/Sub that the test may stop, of the kind that the suites run on: if a twin, so switched."""
    if STRICT_HOST not in os.environ:
        with start_pubsub(fresh=True) as emulator:
            yield emulator
        return
    with start_twin(**switches) as twin, mock.patch.dict(os.environ, twin.environ):
        yield twin


def chosen(suites: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """What of these suites belongs to the wanted files, folders and tests; all if none is named."""
    if not wanted:
        return list(suites)
    within = [path for path in wanted if any(_is_within(path, suite) for suite in suites)]
    return within + [s for s in suites if any(s != path and _is_within(s, path) for path in wanted)]


def _is_within(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith((f"{outer.rstrip('/')}/", f"{outer}::"))


def report(switches: dict[str, Any], results: Path) -> str:
    """What became of a group's tests: one line, and one more for each that failed."""
    root = ElementTree.parse(results).getroot()
    cases = root.findall(".//testcase")
    failed = [case for case in cases if {"failure", "error"} & {kind.tag for kind in case}]
    skipped = root.findall(".//skipped")
    passed = len(cases) - len(failed) - len(skipped)
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    words = " ".join(f"{name}={value}" for name, value in switches.items())
    line = (
        f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped, {seconds:.0f} s ({words})"
    )
    return "\n".join([line, *(f"    {c.get('classname')}::{c.get('name')}" for c in failed)])


def main(arguments: list[str]) -> int:
    wanted = [a for a in arguments if Path(a.partition("::")[0]).exists()]
    options = [a for a in arguments if a not in wanted]
    codes, reports = set(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        start_firestore(fresh=True) as emulator,
        start_firestore_twin(emulator.endpoint, **FIRESTORE) as firestore,
    ):
        for switches, suites in SUITES:
            if not (paths := chosen(suites, wanted)):
                continue
            results = Path(folder) / "results.xml"
            with start_twin(**switches) as pubsub:
                env = {**os.environ, **firestore.environ, **pubsub.environ}
                command = [sys.executable, "-m", "pytest", "-m", "emulator", *paths, *options]
                elsewhere = [s for _, others in SUITES if others is not suites for s in others]
                command += [f"--deselect={s}" for s in elsewhere if "::" in s]
                command.append(f"--junit-xml={results}")
                codes.add(subprocess.run(command, check=False, env=env).returncode)
                print(f"{pubsub.kind}: {pubsub.cost()}")
            if results.exists():
                reports.append(report(switches, results))
        print(f"{firestore.kind}: {firestore.cost()}")
    print("On the twins:", *reports, sep="\n")
    none = {pytest.ExitCode.NO_TESTS_COLLECTED}
    return max(codes - none or codes or none)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
