"""One file, used by many: what :mod:`gwi_celery.sqlite` does when the file itself changes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from gwi_celery import shield
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import BrokerUnusable, StoreUnusable
from gwi_celery.stores.base import Claimed
from gwi_celery.stores.sqlite import SqliteStore
from tests import zygote
from tests.contract.contender import request


def test_two_processes_never_both_hold_a_job_whose_folder_was_deleted(tmp_path: Path) -> None:
    """The one with the old file can do nothing more; the other begins with an empty one."""
    folder = tmp_path / "gwi"
    old = SqliteStore(folder)
    held = old.claim(request("k", "o"))
    assert isinstance(held, Claimed)
    shutil.rmtree(folder)
    with pytest.raises(StoreUnusable, match=r"was deleted .*\bRestart every process"):
        old.claim(request("k", "o"))
    new = SqliteStore(folder)
    assert isinstance(new.claim(request("k", "o")), Claimed)
    for use in (lambda: old.renew(held.lease), lambda: old.get_job(held.record.job)):
        with pytest.raises(StoreUnusable, match=r"was replaced by another file"):
            use()


def test_a_deleted_file_is_not_made_again_by_whoever_had_it(tmp_path: Path) -> None:
    """Also not by another of its threads, which would open a connection of its own."""
    store = SqliteStore(tmp_path / "gwi")
    store.claim(request("k", "o"))
    shutil.rmtree(tmp_path / "gwi")
    with store.database._lock:
        store.database._pool.clear()
    with pytest.raises(StoreUnusable, match="was deleted"):
        store.get_job(request("k", "o").job)
    assert not (tmp_path / "gwi").exists()


def test_a_fork_keeps_to_its_parents_file(tmp_path: Path) -> None:
    """A pool's child opens the path itself: it must not be another file than the parent's."""
    code = """
import os, shutil, sys
from pathlib import Path
from gwi_celery.errors import StoreUnusable
from gwi_celery.stores.sqlite import SqliteStore
from tests.contract.contender import request
folder = Path(sys.argv[1]) / "gwi"
store = SqliteStore(folder)
store.claim(request("k", "o"))
shutil.rmtree(folder)
SqliteStore(folder).claim(request("k", "o"))
pid = os.fork()
if not pid:
    try:
        store.claim(request("k", "o"))
    except StoreUnusable:
        os._exit(17)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = zygote.run(code, str(tmp_path), folder=tmp_path)
    assert done.stdout.strip() == "17"


def test_a_publisher_is_told_that_nobody_would_read_it(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "gwi")
    broker.declare_queue(QueueSpec("q"))
    shutil.rmtree(tmp_path / "gwi")
    with pytest.raises(BrokerUnusable, match="was deleted"):
        broker.publish("", "q", OutgoingMessage(b"{}"))


def test_a_store_that_was_closed_begins_with_what_is_there(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "gwi")
    store.claim(request("k", "o"))
    store.close()
    shutil.rmtree(tmp_path / "gwi")
    assert isinstance(store.claim(request("k", "o")), Claimed)


@pytest.mark.parametrize("name", ["a b", "100%", "q?x=1#y", "ünï", "a;b"])
def test_any_folders_name(tmp_path: Path, name: str) -> None:
    store = SqliteStore(tmp_path / name)
    store.claim(request("k", "o"))
    assert (tmp_path / name / "store.sqlite3").exists()


def locked(folder: Path) -> tuple[SqliteStore, sqlite3.Connection]:
    """A store, and the connection that holds its file's write lock."""
    store = SqliteStore(folder)
    store.claim(request("k", "o"))
    locker = sqlite3.connect(folder / "store.sqlite3", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    return store, locker


def test_a_signal_is_handled_while_a_locked_file_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker would hear of its stop when the wait is over. Here the signal ends the wait."""
    monkeypatch.setattr(shield, "_armed", False)  # by an earlier test: handlers would be held back
    store, locker = locked(tmp_path)
    handled, over = 0, threading.Event()

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        if handled == 2:  # the first may have come before the wait
            locker.execute("ROLLBACK")

    def send() -> None:
        while not over.wait(0.05):
            os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        sender.start()
        assert isinstance(store.claim(request("other", "o")), Claimed)
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
        locker.close()


def test_other_greenlets_run_while_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    code = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, sys
from pathlib import Path
from tests.unit.test_sqlite import Claimed, locked, request
store, locker = locked(Path(sys.argv[1]))
gevent.spawn(locker.execute, "ROLLBACK")
assert isinstance(store.claim(request("other", "o")), Claimed)
"""
    done = zygote.run(code, str(tmp_path / "jobs"), folder=tmp_path, gevent=True)
    assert done.returncode == 0, done.stdout
