"""The app whose jobs an older release left half done; the same source then and now."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

from gwi_celery import ReliableTask, setup

HERE = Path(os.environ["UPGRADE_FOLDER"])
app = Celery("payroll")
# The outcomes have to answer for as long as the files are kept in the repository.
KEPT = 10 * 365 * 86400.0
PROJECT = os.environ.get("UPGRADE_PROJECT", "")
setup(app, project=PROJECT, folder=str(HERE), lease_seconds=10, lock_ttl=3, result_ttl=KEPT)


def ran(what: str) -> None:
    with (HERE / "ran.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")


@app.task(base=ReliableTask, bind=True, name="payroll.pay", max_retries=0)
def pay(self: Any, *, tenant_id: str, run_id: str, amount: int) -> dict[str, Any]:
    first = self.step("read", step, run_id, "read", amount)
    with self.cursor("paid", start=0, save_every=0) as cursor:
        while cursor.value < 3:
            cursor.advance(cursor.value + 1)
    self.checkpoint("note", {"half": True})
    if (HERE / "die").exists() and run_id == "half":
        os.killpg(os.getpgid(0), signal.SIGKILL)
        time.sleep(60)
    if (HERE / "fail").exists() and run_id == "fails":
        raise ValueError("no money")
    second = self.step("pay", step, run_id, "pay", first)
    return {"run": run_id, "paid": second, "note": self.restore("note")}


def step(run: str, name: str, value: int) -> int:
    ran(f"{run} {name}")
    return value + 1
