"""Makes ``RELEASE.sql`` and ``RELEASE.json``: what a release keeps in files, and in Google Cloud.

    export PYTHONPATH=CODE_OF_THAT_RELEASE:.
    python tests/upgrade/make.py 0.1
    python -m gwi_celery.testing.emulators -- python tests/upgrade/make.py 0.1 cloud

Done once for each release, with its own code. What is in it: a job that is done, one that failed (in
the dead letter), one whose worker was killed between two steps, one that nobody began, one with an ETA.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

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


def documents(project: str) -> list[dict[str, Any]]:
    """All documents, as Firestore's REST interface has them, without their project."""
    found = []
    for group in ("gwi_jobs", "gwi_locks", "gwi_steps", "gwi_chunks", "gwi_results", "gwi_parts"):
        query = {"from": [{"collectionId": group, "allDescendants": True}]}
        for answer in firestore(project, "runQuery", {"structuredQuery": query}):
            if "document" in answer:
                document = answer["document"]
                name = document["name"].partition("/documents/")[2]
                found.append({"name": name, "fields": document["fields"]})
    return found


def firestore(project: str, verb: str, body: Any) -> Any:
    host = os.environ["FIRESTORE_EMULATOR_HOST"]
    return post(f"http://{host}/v1/projects/{project}/databases/(default)/documents:{verb}", body)


def pubsub(project: str, what: str, body: Any) -> Any:
    return post(f"http://{os.environ['PUBSUB_EMULATOR_HOST']}/v1/projects/{project}/{what}", body)


def post(url: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer owner"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def messages(project: str, queue: str) -> list[dict[str, Any]]:
    """What the queue's subscription has, once the dead worker's lease of 10 s is over."""
    found: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 13
    while time.monotonic() < end:
        answer = pubsub(
            project,
            f"subscriptions/gwi-{queue}:pull",
            {"maxMessages": 10, "returnImmediately": True},
        )
        for received in answer.get("receivedMessages", []):
            message = received["message"]
            found[message["messageId"]] = {k: message[k] for k in ("data", "attributes")}
        time.sleep(0.5)
    return list(found.values())


def main(release: str, where: str = "files") -> None:
    folder = Path(tempfile.mkdtemp())
    os.environ["UPGRADE_FOLDER"] = str(folder)
    project = f"upgrade-{os.getpid()}" if where == "cloud" else ""
    os.environ["UPGRADE_PROJECT"] = project
    pay = import_module("tests.upgrade.payroll").pay

    def work(*results: Any) -> None:
        """A worker, until these are there; without any, until it dies."""
        command = [sys.executable, "-m", "celery", "-A", "tests.upgrade.payroll", "worker"]
        worker = subprocess.Popen([*command, "--pool", "solo"], start_new_session=True)
        for result in results:
            result.get(timeout=60, propagate=False)
        if results:
            worker.terminate()
        worker.wait(timeout=60)

    def call(run: str, **options: float) -> Any:
        return pay.apply_async(kwargs={"tenant_id": "acme", "run_id": run, "amount": 1}, **options)

    (folder / "fail").touch()
    work(call("done"), call("fails"))
    (folder / "die").touch()
    call("half")
    work()
    call("waits")
    call("later", countdown=40 * 365 * 86400.0)
    if project:
        kept = {
            "documents": documents(project),
            "messages": {queue: messages(project, queue) for queue in ("celery.dead", "celery")},
        }
        (HERE / f"{release}.json").write_text(json.dumps(kept, indent=1) + "\n")
        return
    lines = [line for name in FILES for line in dump(folder / f"{name}.sqlite3", name)]
    # Tracebacks name where it was made.
    text = re.sub(r'/[^"\s]*/(?=(?:site-packages|gwi_celery|tests)/)', "/app/", "\n".join(lines))
    (HERE / f"{release}.sql").write_text(text + "\n")
    print((folder / "ran.jsonl").read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
