"""``python -m tests.peers``: Celery's and Kombu's integration suites on our transports and results.

Runs each suite on Redis and on each side, and lists the tests that pass on Redis and fail on a side.
Exits with 1 if there is one that ``KNOWN`` doesn't explain. Takes about 15 minutes a side for Celery's
suite and a minute for Kombu's.

The sides ``embedded`` and ``pubsub`` are brokers of ours, with results in Redis; ``results-embedded`` and
``results-firestore`` are result backends of ours, with Redis as the broker.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from benchmarks.servers import redis_server
from tests.peers import obtain
from tests.peers.sides import REFERENCE, RESULTS, Side, side

ROOT = Path(__file__).resolve().parent.parent.parent

#: Tests of Celery's suite that are about a result backend that we don't have here (Azure), or about
#: Redis itself.
_NOT_BROKER = ("test_backend.py",)

_SIDES = ",".join(("embedded", "pubsub", *RESULTS))

_NOT_OURS = {"test_connection_recovery": "it asks for a plaintext Redis broker and is skipped"}
_ETA = {
    "test_inspect.test_Inspect::test_scheduled": (
        "it lists what a worker holds in memory until its ETA; here the broker keeps it until then"
    ),
}

_KEYS = {
    "test_chord_on_error": "it reads the keys in which Redis's result backend keeps a chord's parts",
}

#: Part of a test's name -> why it can't pass on a side of ours although it does on Redis.
KNOWN: dict[str, dict[str, str]] = {
    "kombu embedded": {
        "test_failover_switches_to_alternate_url": "it compares ports, and a folder has none",
    },
    "kombu pubsub": {
        "test_failover_switches_to_alternate_url": (
            "it looks at Connection.port, which Kombu leaves unset for a transport that parses its "
            "own URLs (as ours must, for options in them); that it fails over, the others show"
        ),
    },
    "celery embedded": {**_NOT_OURS, **_ETA},
    "celery pubsub": {
        **_NOT_OURS,
        **_ETA,
        "test_revoked_by_headers": (
            "it revokes, and sends the task right after; there is no order between the two "
            "subscriptions, and the emulator looks at each every 50 ms"
        ),
    },
    "celery results-embedded": _KEYS,
    "celery results-firestore": _KEYS,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--suite", default="kombu,celery", help="kombu, celery or both")
    parser.add_argument("--side", default=_SIDES, help=f"compared with redis; {_SIDES}")
    parser.add_argument("--keep", type=Path, help="write logs and outcomes to this folder")
    parser.add_argument("--reference", type=Path, help="outcomes on Redis that --keep has written")
    parser.add_argument("-k", default="", help="only tests that match, as pytest's -k")
    options = parser.parse_args()
    unexplained = 0
    with (
        tempfile.TemporaryDirectory(prefix="gwi-peers-run-") as name,
        redis_server(Path(name)) as redis,
    ):
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for suite in options.suite.split(","):
            reference = None
            if options.reference is not None:
                reference = json.loads((options.reference / f"{suite}-redis.json").read_text())
            for number, side_name in enumerate([REFERENCE, *options.side.split(",")]):
                if side_name == REFERENCE and reference is not None:
                    continue
                if side_name in RESULTS and suite != "celery":
                    continue
                with side(side_name, Path(name) / f"{suite}-{side_name}", redis) as where:
                    outcomes = run(suite, where, f"{redis}/{number + 1}", folder, options.k)
                (folder / f"{suite}-{side_name}.json").write_text(json.dumps(outcomes, indent=1))
                print(f"{suite} on {side_name}: {dict(Counter(outcomes.values()))}", flush=True)
                if reference is None:
                    reference = outcomes
                else:
                    ran = {n: o for n, o in reference.items() if n in outcomes or not options.k}
                    unexplained += compare(suite, where, ran, outcomes)
    return 1 if unexplained else 0


def run(suite: str, where: Side, results: str, folder: Path, keyword: str) -> dict[str, str]:
    """Test -> ``passed``, ``failed`` or ``skipped``."""
    tests = obtain.suite(suite)
    path = [*obtain.site(), ROOT]
    host, port = results.removeprefix("redis://").partition("/")[0].split(":")
    environment = {
        **os.environ,
        **where.environment,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONUNBUFFERED": "1",
        "TEST_BROKER": where.broker,
        "TEST_BACKEND": where.results or results,
        "REDIS_HOST": host,
        "REDIS_PORT": port,
        "PEER_BROKER": where.broker,
        "PEER_DEAD": where.dead,
        "PEER_PRIORITY": where.priority,
        "PEER_OPTIONS": json.dumps(where.options),
    }
    arguments = ["t/integration"]
    if suite == "kombu":
        shutil.copy(
            Path(__file__).with_name("kombu_suite.py"), tests / "t/integration/test_peer.py"
        )
        arguments = ["t/integration/test_peer.py", "-o", "python_classes=test_*"]
    else:
        arguments += [f"--ignore=t/integration/{name}" for name in _NOT_BROKER]
    if keyword:
        arguments += ["-k", keyword]
    report = folder / f"{suite}-{where.name}.xml"
    log = folder / f"{suite}-{where.name}.log"
    with log.open("w") as file:
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", *arguments, "-q", "-rA", "--tb=short"),
                *("-p", "no:cacheprovider", "-W", "ignore", "--timeout=300"),
                f"--junitxml={report}",
            ],
            cwd=tests,
            env=environment,
            check=False,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if not report.exists():
        raise SystemExit(
            f"the {suite} suite did not run on {where.name}:\n{log.read_text()[-3000:]}"
        )
    return read(report)


def read(report: Path) -> dict[str, str]:
    """The outcomes in a JUnit report. A test with subtests fails if one of them does."""
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        outcome = "passed"
        if kinds & {"failure", "error"}:
            outcome = "failed"
        elif "skipped" in kinds:
            outcome = "skipped"
        # The last run of a flaky test counts, except that a failed teardown stays a failure.
        outcomes[name] = outcome
    return outcomes


def compare(suite: str, where: Side, reference: dict[str, str], outcomes: dict[str, str]) -> int:
    """Print what differs; how many differences nothing explains."""
    passed = [name for name, outcome in reference.items() if outcome == "passed"]
    lost = [name for name in passed if outcomes.get(name) != "passed"]
    gained = [
        name for name, outcome in outcomes.items() if outcome == "passed" and name not in passed
    ]
    print(f"  of {len(passed)} that pass on Redis, {len(passed) - len(lost)} pass on {where.name}")
    known = KNOWN.get(f"{suite} {where.name}", {})
    unexplained = 0
    for name in lost:
        reason = next((why for part, why in known.items() if part in name), None)
        unexplained += reason is None
        print(f"  {outcomes.get(name, 'missing'):8} {name}{f': {reason}' if reason else ''}")
    for name in gained:
        print(f"  passes here, not on Redis: {name}")
    return unexplained


if __name__ == "__main__":
    sys.exit(main())
