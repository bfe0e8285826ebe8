"""Mutations that must turn the suite red: ``python -m tests.mutants``.

Each is put into a copy of the tree, and the store's contract, its state machine and the tests of keys
run there. Exits with 1 if the suite stays green under any of them: then a promise is untested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORE, ROWS, IDS = (
    "gwi_celery/stores/sqlite.py",
    "gwi_celery/stores/sqlite_rows.py",
    "gwi_celery/ids.py",
)
SUITE = [
    "tests/unit/test_call.py",
    "tests/unit/test_known_bugs.py",
    "tests/contract/test_store.py",
    "tests/contract/test_store_machine.py",  # last: it takes its time to shrink what it finds
]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    before: str
    after: str


MUTANTS = [
    Mutant(
        "tokens start again with each lock",
        STORE,
        "token = max(last + 1, int(now * 1_000_000))",
        "token = 1 + 0 * last",
    ),
    Mutant(
        "the lock's token is not checked on a write",
        STORE,
        "if not (owns_record and owns_lock):",
        "if not owns_record:",
    ),
    Mutant(
        "the record's token is not checked on a write",
        STORE,
        "if not (owns_record and owns_lock):",
        "if not owns_lock:",
    ),
    Mutant(
        "no token is checked on a write",
        STORE,
        "if not (owns_record and owns_lock):",
        "if not (owns_record or owns_lock or lock is None or lock is not None):",
    ),
    Mutant(
        "an outcome is not looked at when the lock is free",
        STORE,
        "if job is not None and ended and not _opens_next_generation(job, request):",
        "if job is not None and ended and False:",
    ),
    Mutant(
        "a lock that is held is taken",
        STORE,
        'if lock["expires_at"] > now:',
        'if lock["expires_at"] > now + 1e9:',
    ),
    Mutant(
        "a lock is never taken over",
        STORE,
        'if lock["expires_at"] > now:',
        'if lock["expires_at"] > 0:',
    ),
    Mutant(
        "another payload runs",
        STORE,
        'if job is not None and job["fingerprint"] not in (ANY_PAYLOAD, request.fingerprint):',
        "if job is not None and False:",
    ),
    Mutant(
        "a failure answers a fresh call",
        STORE,
        'failed = job["status"] == JobStatus.FAILED.value',
        "failed = False",
    ),
    Mutant(
        "a step may be overwritten",
        "gwi_celery/stores/rules.py",
        "if kind is CheckpointKind.STEP:\n        raise StepNameReused(",
        "if False:\n        raise StepNameReused(",
    ),
    Mutant(
        "what has expired is still answered",
        ROWS,
        'if row is None or (row["expires_at"] is not None and row["expires_at"] <= now):',
        "if row is None:",
    ),
    Mutant(
        "cleanup deletes what is live",
        STORE,
        '"SELECT job_id FROM jobs WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",',
        '"SELECT job_id FROM jobs WHERE expires_at > 0 OR ? ORDER BY expires_at LIMIT ?",',
    ),
    Mutant(
        "expiry is by another clock",
        STORE,
        "now = self._clock.time()\n            stored = rows.job_row(c, request.job)",
        "now = __import__('time').time()\n            stored = rows.job_row(c, request.job)",
    ),
    Mutant(
        "the tenant is left out of ids",
        "gwi_celery/stores/base.py",
        'return digest("lock", self.tenant, *self.scope)',
        'return digest("lock", *self.scope)',
    ),
    Mutant(
        "parts of an id are joined, not length-prefixed",
        IDS,
        'h.update(b"%d:" % len(raw))',
        "pass",
    ),
    Mutant(
        "nested keys are left out of the payload's fingerprint",
        IDS,
        "text = _CANONICAL.encode(payload)",
        "text = repr(sorted(payload) if isinstance(payload, dict) else payload)",
    ),
]


def survives(mutant: Mutant) -> bool:
    """Whether the suite stays green. Raises LookupError if the code to mutate is gone."""
    with tempfile.TemporaryDirectory(prefix="gwi-mutant-") as name:
        copy = Path(name)
        for part in ("gwi_celery", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        target = copy / mutant.file
        source = target.read_text()
        if source.count(mutant.before) != 1:
            raise LookupError(f"{mutant.name}: not found once in {mutant.file}: {mutant.before!r}")
        target.write_text(source.replace(mutant.before, mutant.after))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *SUITE],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": name, "STORE_MACHINE_EXAMPLES": "40"},
            capture_output=True,
            timeout=300,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{mutant.name}: pytest itself failed:\n{done.stdout.decode()}")
        return done.returncode == 0


def main() -> int:
    survivors = 0
    for mutant in MUTANTS:
        alive = survives(mutant)
        survivors += alive
        print(f"{'SURVIVED' if alive else 'killed  '}  {mutant.name}", flush=True)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
