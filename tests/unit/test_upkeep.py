"""Embedded files stop growing by themselves: what has expired is deleted, and its space given back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import broker_for, setup, store_for
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.sqlite import Database
from gwi_celery.stores.base import Checkpoint, CheckpointKind, Claimed, JobStatus, Outcome
from gwi_celery.upkeep import Cleaner, clean
from tests import zygote
from tests.contract.contender import request
from tests.machine import PATIENCE
from tests.workers import ROOT

#: Of each kind.
COUNT = 210
SIZE = 16_000
TABLES = {
    "store.sqlite3": ("jobs", "locks", "checkpoints", "results", "chords", "chord_parts"),
    "broker.sqlite3": ("messages", "bodies"),
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    app = Celery(f"upkeep-{uuid4().hex}", set_as_current=False)
    setup(app, folder=str(tmp_path))
    original = Database.write
    with pytest.MonkeyPatch.context() as patch:  # no power is cut here: hundreds of syncs take long
        patch.setattr(Database, "write", lambda self, durable=True: original(self, durable=False))
        yield app
    store_for(app).close()
    app.backend.database.close()
    app.close()


def rows(folder: Path) -> dict[str, int]:
    found = {}
    for file, tables in TABLES.items():
        c = sqlite3.connect(folder / file)
        for table in tables:
            found[table] = c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        c.close()
    return found


def fill(app: Celery, ttl: float, name: str = "k") -> None:
    """Finished jobs with a checkpoint each, results, chords, messages: all with that time to live."""
    store, backend, broker = store_for(app), app.backend, broker_for(app)
    broker.declare_queue(QueueSpec("q"))
    blob = b"x" * SIZE
    for n in range(COUNT):
        held = store.claim(replace(request(f"{name}{n}", "o"), result_ttl=ttl))
        assert isinstance(held, Claimed)
        lease = store.save(held.lease, Checkpoint("s", CheckpointKind.STEP, blob))
        store.finish(lease, Outcome(JobStatus.SUCCEEDED, b"1"))
        backend.put(f"{name}{n}", blob, "SUCCESS", ttl, None)
        broker.publish("", "q", OutgoingMessage(blob, ttl=ttl))
    with backend.database.write() as c:
        for n in range(COUNT):
            c.execute("INSERT INTO chords VALUES (?, NULL, ?)", (f"{name}{n}", time.time() + ttl))
            c.execute("INSERT INTO chord_parts VALUES (?, 'p')", (f"{name}{n}",))


def sizes(folder: Path) -> list[int]:
    return [sum(p.stat().st_size for p in folder.glob(f"{file}*")) for file in TABLES]


def test_what_has_expired_goes_and_its_space_with_it(app: Celery, tmp_path: Path) -> None:
    fill(app, ttl=0.01)
    large = sizes(tmp_path)
    assert min(large) > COUNT * SIZE
    time.sleep(0.05)
    clean(app)
    assert rows(tmp_path) == dict.fromkeys(rows(tmp_path), 0)
    for file in TABLES:
        c = sqlite3.connect(tmp_path / file)
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        c.close()
    small = sizes(tmp_path)
    assert all(after < before / 2 for after, before in zip(small, large, strict=True))
    assert clean(app) == 0


def test_what_has_not_expired_stays(app: Celery, tmp_path: Path) -> None:
    fill(app, ttl=600)
    before = rows(tmp_path)
    assert clean(app) == 0
    assert rows(tmp_path) == before
    assert before["jobs"] == before["messages"] == COUNT


def test_one_worker_at_a_time(app: Celery, tmp_path: Path) -> None:
    """While another process is at it; after that for half the interval, whichever process it was."""
    fill(app, ttl=0.01)
    time.sleep(0.05)
    code = """
import sys
from pathlib import Path
from gwi_celery.upkeep import _alone_in
with _alone_in(Path(sys.argv[1]), 0) as alone:
    print(alone, flush=True)
    sys.stdin.readline()
"""
    (tmp_path / "alone.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = zygote.start("alone", [str(tmp_path)], folder=tmp_path, env=env, talks=True)
    with other.stdin, other.stdout:
        assert other.stdout.readline() == "True\n"
        assert clean(app) == 0
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(PATIENCE) == 0
    assert clean(app, interval=3600) == 0
    assert clean(app) > 0


def test_it_waits_for_nobody_and_others_wait_for_one_batch(app: Celery, tmp_path: Path) -> None:
    """Between its transactions others write; told to stop, it does no more than the one under way."""
    fill(app, ttl=0.01)
    time.sleep(0.05)
    stopping = threading.Event()
    stopping.set()
    assert clean(app, stopping=stopping) == 0
    most = []
    original = Database.write

    def counted(self: Database, **kwargs: object) -> object:
        most.append(sum(rows(tmp_path).values()))
        return original(self, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "write", counted)
        clean(app)
    steps = [before - after for before, after in pairwise(most)]
    assert max(steps) <= 2 * 2 * 200  # of two kinds, each of two tables
    assert sum(rows(tmp_path).values()) == 0


def test_a_lock_file_that_a_power_cut_damaged_keeps_nobody_out(app: Celery, tmp_path: Path) -> None:
    (tmp_path / "upkeep.lock").write_bytes(b"\0" * 40)
    clean(app, interval=60)
    first = (tmp_path / "upkeep.lock").read_bytes()
    assert float(first[:17]) == pytest.approx(time.time(), abs=60)
    clean(app, interval=60)
    assert (tmp_path / "upkeep.lock").read_bytes() == first, "it was done lately"


#: In a process that may not write there: root may write anywhere.
READ_ONLY = """
import logging, os, sys
from celery import Celery
from gwi_celery import setup
from gwi_celery.upkeep import Cleaner

folder = sys.argv[1]
logging.basicConfig(format="%(levelname)s %(message)s")
app = Celery("upkeep")
setup(app, folder=folder)
cleaner = Cleaner(app, 60)
cleaner._take_turn()  # makes the files
os.chmod(folder + "/upkeep.lock", 0o400)
os.chmod(folder, 0o555)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for _ in range(3):
    cleaner._take_turn()
"""


def test_a_read_only_folder_is_told_once_and_what_to_do(tmp_path: Path) -> None:
    open_to_all = Path(tempfile.mkdtemp())  # unlike pytest's folders
    try:
        open_to_all.chmod(0o755)
        folder = open_to_all / "gwi"
        done = zygote.run(READ_ONLY, str(folder), folder=tmp_path)
        assert done.returncode == 0, done.stdout
        (line,) = [line for line in done.stdout.splitlines() if "can't be written" in line]
        assert done.stdout.strip() == line, "nothing else, and no traceback"
        assert line.startswith("WARNING expired records could not be deleted yet:")
        assert f"{folder / 'upkeep.lock'} can't be written (Permission denied): make" in line
    finally:
        open_to_all.joinpath("gwi").chmod(0o755)
        shutil.rmtree(open_to_all)


def test_an_error_that_lasts_is_logged_again_after_it_was_gone(
    app: Celery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock, cleaner = tmp_path / "upkeep.lock", Cleaner(app, 0.001)
    for _ in range(2):
        lock.mkdir()
        for _ in range(2):
            cleaner._take_turn()
        lock.rmdir()
        cleaner._take_turn()
        lock.unlink()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "Is a directory" in caplog.text


def test_a_file_of_an_earlier_release_is_cleaned_and_used_again(
    app: Celery, tmp_path: Path
) -> None:
    """It can't shrink in place; it doesn't grow either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gwi_celery.sqlite._INCREMENTAL", 0)
        fill(app, ttl=0.01, name="old")
    grown = []
    for n in range(3):
        time.sleep(0.05)
        clean(app)
        assert rows(tmp_path)["jobs"] == 0
        fill(app, ttl=0.01, name=str(n))
        grown.append((tmp_path / "store.sqlite3").stat().st_size)
    assert grown[-1] < grown[0] * 1.05
