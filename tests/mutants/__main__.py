"""Break promises one at a time; the tests that each mutant names must notice.

A group's tests are run unmutated first: unless each mutant names some, and all pass, its mutants are not
tried. Each mutant is put into a copy of the tree, several of them at a time. One is killed if a test
fails; a test that only runs out of time proves nothing, for the machine may be slow. Nor does one that
gave up waiting, unless it passes without the mutant right after. Exits with 1 unless every mutant was
killed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from gwi_celery.gcp.emulators import FIRESTORE_HOST, PUBSUB_HOST
from gwi_celery.testing.emulators import start_firestore, start_pubsub
from tests.mutants import GROUPS, ON_EMULATORS
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
#: Seconds for one test, and for all that one mutant names: on an idle machine they take a few.
TEST_TIMEOUT, TIMEOUT = 100, 600
#: Seconds that a test waits for what a mutant may keep from happening: tests.machine.PATIENCE.
PATIENCE = 20


@dataclass(frozen=True)
class Result:
    #: "killed", "survived", "timed out", "broken": pytest could not run the tests.
    state: str
    why: str = ""


@dataclass(frozen=True)
class Ran:
    """What pytest printed."""

    status: int | None
    text: str

    @property
    def passed(self) -> list[str]:
        return re.findall(r"^PASSED (\S.*)$", self.text, re.M)

    @property
    def failed(self) -> list[str]:
        return re.findall(r"^(?:FAILED|ERROR) (\S.*)$", self.text, re.M)


class Trees:
    """Copies of the tree, one for each mutant that is tried at a time."""

    def __init__(self, folder: Path, number: int) -> None:
        self._idle: SimpleQueue[Path] = SimpleQueue()
        for n in range(number):
            copy = folder / str(n)
            for part in ("gwi_celery", "tests"):
                shutil.copytree(ROOT / part, copy / part)
            shutil.copy(ROOT / "pyproject.toml", copy)
            self._idle.put(copy)

    @contextmanager
    def mutated(self, mutant: Mutant | None) -> Iterator[Path]:
        tree = self._idle.get()
        try:
            if mutant is None:
                yield tree
                return
            target = tree / mutant.file
            source = target.read_text()
            _write(target, source.replace(mutant.before, mutant.after))
            try:
                yield tree
            finally:
                _write(target, source)
        finally:
            self._idle.put(tree)


def _write(target: Path, source: str) -> None:
    """Without its bytecode, which Python knows by the second of the file's last change."""
    target.write_text(source)
    for compiled in target.parent.glob(f"__pycache__/{target.stem}.*"):
        compiled.unlink()


def pytest(trees: Trees, mutant: Mutant | None, marks: str, tests: Sequence[str]) -> Ran:
    with trees.mutated(mutant) as tree:
        options = ["-q", "-rpfE", "--tb=no", f"--timeout={TEST_TIMEOUT}", "-p", "no:cacheprovider"]
        first = [] if mutant is None else ["-x"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *first, "-m", marks, *tests],
                cwd=tree,
                env={
                    **os.environ,
                    "PYTHONPATH": str(tree),
                    "COLUMNS": "300",
                    "TESTS_PATIENCE": str(PATIENCE),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=None if mutant is None else TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            return Ran(None, (exc.output or b"").decode(errors="replace"))
        return Ran(done.returncode, done.stdout.decode(errors="replace"))


def objections(mutants: Sequence[Mutant], ran: Ran) -> list[str]:
    """Why the outcome of these would say nothing."""
    found = [f"fails without a mutant: {line}" for line in ran.failed]
    if ran.status != 0 and not found:
        found.append(f"pytest ended with {ran.status}:\n{ran.text}")
    for mutant in mutants:
        places = (ROOT / mutant.file).read_text().count(mutant.before)
        if places != 1:
            found.append(f"{mutant.name}: {places} times in {mutant.file}: {mutant.before!r}")
        for test in mutant.selection:
            if not any(re.match(rf"{re.escape(test)}(\[|::|$)", name) for name in ran.passed):
                found.append(f"{mutant.name}: no test ran that is {test}")
    return found


def outcome(ran: Ran) -> Result:
    if ran.status is None:
        return Result("timed out", f"{TIMEOUT} s")
    if ran.status == 0:
        return Result("survived")
    if ran.status != 1 or not ran.failed:
        return Result("broken", ran.text[-2000:])
    why = ran.failed[0].removeprefix("tests/")
    return Result("timed out" if "Timeout (>" in why else "killed", why)


def run(
    name: str, chosen: Sequence[Mutant], trees: Trees, pool: ThreadPoolExecutor
) -> Counter[str]:
    """How many of a group ended how."""
    marks = "not slow" if name in ON_EMULATORS else "not slow and not emulator"
    tests = list(dict.fromkeys(test for mutant in chosen for test in mutant.selection))
    began = time.monotonic()
    why_not = objections(chosen, pytest(trees, None, marks, tests))
    if why_not:
        print(f"{name}: not tried\n  " + "\n  ".join(why_not), flush=True)
        return Counter({"not tried": len(chosen)})
    print(f"{name}: {time.monotonic() - began:.0f} s without a mutant", flush=True)

    def one(mutant: Mutant) -> str:
        began = time.monotonic()
        result = outcome(pytest(trees, mutant, marks, mutant.selection))
        took = time.monotonic() - began
        if result.state == "killed" and took > PATIENCE:
            whole = pytest(trees, None, marks, mutant.selection)
            if whole.status != 0:
                result = Result("timed out", result.why)
        print(f"{result.state:9} {took:4.0f} s  {mutant.name}  [{result.why}]", flush=True)
        return result.state

    return Counter(pool.map(one, chosen))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}; all")
    parser.add_argument("-k", default="", metavar="TEXT", help="those with this in their names")
    parser.add_argument("-n", type=int, default=os.cpu_count() or 1, help="how many at a time")
    given = parser.parse_args(arguments)
    unknown = set(given.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}")
    chosen = {
        name: [mutant for mutant in mutants if given.k in mutant.name]
        for name, mutants in GROUPS.items()
        if not given.groups or name in given.groups
    }
    total: Counter[str] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gwi-mutants-"))
        trees = Trees(Path(folder), given.n)
        pool = stack.enter_context(ThreadPoolExecutor(given.n))
        if any(mutants and name in ON_EMULATORS for name, mutants in chosen.items()):
            for variable, start in ((PUBSUB_HOST, start_pubsub), (FIRESTORE_HOST, start_firestore)):
                os.environ[variable] = stack.enter_context(start()).endpoint
        for name, mutants in chosen.items():
            if mutants:
                total += run(name, mutants, trees, pool)
    states = ", ".join(f"{number} {state}" for state, number in total.items())
    print(f"{total.total()} mutants in {time.monotonic() - began:.0f} s: {states or 'none chosen'}")
    return int(total["killed"] < total.total() or not total)


if __name__ == "__main__":
    sys.exit(main())
