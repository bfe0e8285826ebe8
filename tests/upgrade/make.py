"""Makes ``RELEASE.sql``: the embedded files of a release, with jobs in every state.

    PYTHONPATH=CODE_OF_THAT_RELEASE:. python tests/upgrade/make.py 0.1

Done once for each release, with its own code. What is in it: a job that is done, one that failed (in
the dead letter), one whose worker was killed between two steps, one that nobody began, one with an ETA.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("broker", "store")


def dump(path: Path, name: str) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        return [
            f"-- file {name}",
            f"PRAGMA application_id={application};",
            f"PRAGMA user_version={version};",
            *connection.iterdump(),
        ]


def main(release: str) -> None:
    folder = Path(tempfile.mkdtemp())
    os.environ["UPGRADE_FOLDER"] = str(folder)
    pay = import_module("tests.upgrade.payroll").pay

    def work(*, dies: bool = False) -> None:
        command = [sys.executable, "-m", "celery", "-A", "tests.upgrade.payroll", "worker"]
        worker = subprocess.Popen([*command, "--pool", "solo"], start_new_session=True)
        if not dies:
            time.sleep(8)
            worker.terminate()
        worker.wait(timeout=60)

    def call(run: str, **options: float) -> None:
        pay.apply_async(kwargs={"tenant_id": "acme", "run_id": run, "amount": 1}, **options)

    (folder / "fail").touch()
    call("done")
    call("fails")
    work()
    (folder / "die").touch()
    call("half")
    work(dies=True)
    call("waits")
    call("later", countdown=40 * 365 * 86400.0)
    lines = [line for name in FILES for line in dump(folder / f"{name}.sqlite3", name)]
    (HERE / f"{release}.sql").write_text("\n".join(lines) + "\n")
    print((folder / "ran.jsonl").read_text())


if __name__ == "__main__":
    main(sys.argv[1])
