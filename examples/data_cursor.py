"""A large file, processed with a cursor: after a crash a job begins near where the last attempt ended.

    python -m examples.data_cursor

Each batch's file is named after the batch's number: a batch that is done twice is there once.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from celery import Celery

from examples.local import worker
from gwi_celery import ReliableTask, setup

FOLDER = Path(tempfile.mkdtemp(prefix="data-cursor-"))
os.environ.setdefault("GWI_FOLDER", str(FOLDER / "gwi"))
app = Celery("data")
setup(app)

BATCH = 100
#: Batches that were processed, in order.
worked: list[int] = []
#: The batches at which the "machine" breaks, once each.
breaks = [3, 7]


@app.task(base=ReliableTask, bind=True, max_retries=5)
def totals(self: Any, source: str, target: str, *, tenant_id: str, run_id: str) -> dict[str, float]:
    rows = self.step("count", count_rows, source)
    # save_every=0 saves after each batch; the default saves once a second, for less.
    with self.cursor("batch", start=0, save_every=0) as cursor:
        for batch in range(cursor.value, -(-rows // BATCH)):
            if batch in breaks:
                breaks.remove(batch)
                raise self.retry(countdown=0)
            process(batch, source, target)
            cursor.advance(batch + 1)
    result: dict[str, float] = self.step("sum", add_up, target)
    return result


def count_rows(source: str) -> int:
    with open(source, newline="") as file:
        return sum(1 for _ in csv.reader(file))


def process(batch: int, source: str, target: str) -> None:
    worked.append(batch)
    found: Counter[str] = Counter()
    with open(source, newline="") as file:
        for number, (shop, amount) in enumerate(csv.reader(file)):
            if batch * BATCH <= number < (batch + 1) * BATCH:
                found[shop] += int(amount)
    part = Path(target) / f"part-{batch:05}.json"
    temporary = part.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.replace(part)


def add_up(target: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in sorted(Path(target).glob("part-*.json")):
        total.update(json.loads(part.read_text()))
    return dict(total)


def main() -> None:
    source, target = FOLDER / "sales.csv", FOLDER / "parts"
    target.mkdir()
    with source.open("w", newline="") as file:
        csv.writer(file).writerows((f"shop-{n % 3}", n) for n in range(1000))
    with worker(app):
        call = {"tenant_id": "acme", "run_id": "sales-july"}
        result = totals.delay(str(source), str(target), **call).get(timeout=60)
    print(result)
    assert sum(result.values()) == sum(range(1000)), "each row counts once"
    assert worked == list(range(10)), "no finished batch is done again"


if __name__ == "__main__":
    main()
