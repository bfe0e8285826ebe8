"""What the embedded broker does beyond the contract: its file, its wake-ups, its housekeeping."""

from __future__ import annotations

import errno
import gc
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gwi_celery.sqlite
from gwi_celery.brokers import wakeups
from gwi_celery.brokers.base import OutgoingMessage, QueueSize, QueueSpec, dead_letter_queue
from gwi_celery.brokers.embedded import EmbeddedBroker, forget_memory, memory_broker, schema
from gwi_celery.errors import BrokerUnavailable, BrokerUnusable, ConfigurationError
from tests import zygote
from tests.clocks import FakeClock
from tests.contract.brokers import bodies, drain, readable, send, take
from tests.machine import Stopwatch


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def broker(tmp_path, clock) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path, clock=clock, lease_seconds=32.0)
    yield broker
    broker.close()


def bells(folder: Path) -> list[str]:
    return [path.name for path in (folder / "wake").iterdir()]


def test_a_number_of_any_length_may_be_given_as_an_id(broker):
    send(broker, b"x")
    assert broker.discard("q", ["9" * 5000, "no id"]) == 0
    assert broker.size("q").ready == 1


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"lease_seconds": 0}, {"retention": -1.0}, {"max_deliveries": -1}], ids=str
)
def test_settings_that_can_not_work(tmp_path, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        EmbeddedBroker(tmp_path, **options)


# --- leases that ran out and were not taken over --------------------------------------------------


def test_a_late_holder_may_still_settle_what_nobody_else_got(broker, clock):
    receiver = broker.receiver()
    send(broker, b"acked", b"extended", b"nacked", b"dead")
    acked, extended, nacked, dead = receiver.poll("q", 4)
    clock.advance(1000)

    broker.ack([acked])
    assert broker.extend([extended], 60.0) == []
    broker.nack(nacked, 60.0)
    broker.dead_letter(dead, "reason")

    assert broker.size("q") == QueueSize(ready=0, delayed=1, leased=1)
    assert broker.size(dead_letter_queue("q")).ready == 1


def test_also_when_a_poll_for_others_came_across_it(broker, clock):
    receiver = broker.receiver()
    send(broker, b"1", b"2")
    _, second = receiver.poll("q", 2)
    clock.advance(1000)
    assert bodies(receiver.poll("q", 1)) == [b"1"]  # makes both ready, takes one
    assert broker.extend([second], 60.0) == []
    assert receiver.poll("q", 1) == []


def test_not_when_its_time_is_over_as_well(broker, clock):
    send(broker, b"m", ttl=10.0)
    late = take(broker.receiver())
    clock.advance(1000)
    assert broker.extend([late], 60.0) == [late]


# --- wake-ups -------------------------------------------------------------------------------------


def test_a_receiver_leaves_nothing_behind(broker, tmp_path):
    send(broker, b"m")
    receiver = broker.receiver()
    receiver.subscribe("q")
    assert len(bells(tmp_path)) == 1
    receiver.close()
    assert bells(tmp_path) == []


def test_a_closed_receiver_is_of_no_more_use(broker):
    send(broker, b"m")
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.close()
    for use in (
        receiver.fileno,
        receiver.clear,
        receiver.next_due,
        lambda: receiver.poll("q", 1),
        lambda: receiver.subscribe("q"),
        lambda: receiver.unsubscribe("q"),
    ):
        with pytest.raises(BrokerUnusable, match="closed"):
            use()


def test_a_receiver_is_not_woken_for_queues_of_others(broker):
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    send(broker, b"m", queue="other")
    assert not readable(receiver, 0)


def test_a_receiver_that_was_dropped_counts_as_dead(broker, tmp_path):
    broker.declare_queue(QueueSpec("q", auto_delete=True))
    receiver = broker.receiver()
    receiver.subscribe("q")
    del receiver
    gc.collect()
    send(broker, b"m")
    assert not broker.has_queue("q")
    assert bells(tmp_path) == []


def test_a_dead_subscriber_does_not_keep_what_the_last_living_one_leaves(broker, tmp_path):
    broker.declare_queue(QueueSpec("q", auto_delete=True))
    dead, living = broker.receiver(), broker.receiver()
    for receiver in (dead, living):
        receiver.subscribe("q")
    del dead, receiver
    gc.collect()
    living.unsubscribe("q")
    assert not broker.has_queue("q")
    living.close()
    assert bells(tmp_path) == []


def test_a_full_bell_stops_nobody(broker):
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    for _ in range(2):
        for _ in range(70_000):
            receiver._bell.ring()
        send(broker, b"m")
        assert readable(receiver, 0)
        receiver.clear()
        assert not readable(receiver, 0)
        assert take(receiver).data == b"m"


def test_a_publisher_killed_before_it_could_wake_delays_by_half_a_minute(
    broker, clock, monkeypatch
):
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    assert drain(receiver) == []
    monkeypatch.setattr(wakeups.FolderWakeups, "ring", lambda self, names: [])
    send(broker, b"m")
    assert not readable(receiver, 0)
    assert receiver.next_due() == wakeups.LOOK_INTERVAL


def test_what_is_due_is_announced_once_to_one_without_room(broker, clock):
    """A worker that holds all it may must not be called again and again."""
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    send(broker, b"1", delay=1.0)
    send(broker, b"2", delay=3.0)
    clock.advance(2)
    assert [receiver.next_due(), receiver.next_due()] == [0.0, 1.0]
    clock.advance(1)
    assert [receiver.next_due(), receiver.next_due()] == [0.0, wakeups.LOOK_INTERVAL]
    assert bodies(receiver.poll("q", 2)) == [b"1", b"2"]


def test_a_clock_set_back_hides_nothing(broker, clock):
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    assert drain(receiver) == []
    clock.advance(-1000)
    send(broker, b"m", delay=4.0)
    assert receiver.next_due() == 4.0


def test_a_file_system_without_fifos_is_polled(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mkfifo", refuse)
    clock = FakeClock()
    one, other = EmbeddedBroker(tmp_path, clock=clock), EmbeddedBroker(tmp_path, clock=clock)
    one.declare_queue(QueueSpec("q", auto_delete=True))
    receiver = one.receiver()
    receiver.subscribe("q")
    receiver.clear()
    assert receiver.next_due() == wakeups.POLL_INTERVAL
    send(other, b"m")
    assert take(receiver).data == b"m"

    # A living receiver's file stays fresh; a dead one's grows old.
    [name] = bells(tmp_path)
    old = time.time() - 1000
    os.utime(tmp_path / "wake" / name, (old, old))
    clock.advance(wakeups.LOOK_INTERVAL)
    receiver.poll("q", 1)
    other.housekeep()
    assert other.has_queue("q")
    os.utime(tmp_path / "wake" / name, (old, old))
    other.housekeep()
    assert not other.has_queue("q")
    assert bells(tmp_path) == []
    one.close()
    other.close()


def test_a_platform_without_fifos_is_polled(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "mkfifo")
    broker = EmbeddedBroker(tmp_path)
    send(broker, b"m")
    receiver = broker.receiver()
    receiver.subscribe("q")
    assert readable(receiver)
    assert receiver.next_due() == wakeups.POLL_INTERVAL
    broker.close()


def test_a_wake_folder_that_can_not_be_made(tmp_path):
    broker = EmbeddedBroker(tmp_path)
    (tmp_path / "wake").write_text("a file")
    with pytest.raises(BrokerUnusable, match="wake"):
        broker.receiver()
    broker.close()


_FORKS_AND_IS_KILLED = """
import os, sys
from pathlib import Path
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.embedded import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
broker.declare_queue(QueueSpec("q", auto_delete=True))
receiver = broker.receiver()
receiver.subscribe("q")
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""


def test_a_forked_child_does_not_keep_its_parents_receiver_alive(broker, tmp_path):
    (tmp_path / "forks.py").write_text(_FORKS_AND_IS_KILLED)
    env = {**os.environ, "PYTHONPATH": str(zygote.ROOT)}
    parent = zygote.start("forks", [str(tmp_path)], folder=tmp_path, env=env, talks=True)
    with parent.stdout, parent.stdin:  # whose end ends the child
        assert parent.stdout.readline() == "forked\n"
        send(broker, b"m")
        assert broker.has_queue("q")
        parent.kill()
        parent.wait()
        send(broker, b"m")
        assert not broker.has_queue("q")


# --- housekeeping ---------------------------------------------------------------------------------


def _rows(folder: Path) -> tuple[int, int]:
    with sqlite3.connect(folder / "broker.sqlite3") as c:
        counts = [
            c.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("messages", "bodies")
        ]
    c.close()
    return counts[0], counts[1]


def test_housekeeping_deletes_what_expired(broker, clock, tmp_path):
    broker.declare_queue(QueueSpec("brief", expires=5.0))
    send(broker, b"m", b"n", queue="brief")
    send(broker, *[b"m"] * 4, ttl=5.0)
    send(broker, b"kept", b"leased", ttl=500.0)
    assert broker.housekeep() == 0
    clock.advance(5)
    assert _rows(tmp_path) == (8, 8)
    assert [broker.housekeep(3), broker.housekeep(3), broker.housekeep(3)] == [3, 1, 0]
    assert _rows(tmp_path) == (2, 2)
    clock.advance(495)
    assert broker.housekeep() == 2


@pytest.mark.parametrize("use", ["publish", "poll", "next_due"])
def test_whoever_uses_the_broker_keeps_house(broker, clock, tmp_path, use):
    send(broker, b"m", ttl=5.0, queue="forgotten")
    receiver = broker.receiver()
    clock.advance(wakeups.LOOK_INTERVAL)
    if use == "publish":
        send(broker, b"new")
    elif use == "poll":
        assert receiver.poll("q", 1) == []
    else:
        assert receiver.next_due() is None
    assert _rows(tmp_path) == ((1, 1) if use == "publish" else (0, 0))


def test_housekeeping_that_fails_fails_nobody_else(broker, clock, monkeypatch):
    def fail():
        raise BrokerUnavailable("locked")

    monkeypatch.setattr(broker, "housekeep", fail)
    clock.advance(wakeups.LOOK_INTERVAL)
    send(broker, b"m")
    assert take(broker.receiver()).data == b"m"


def test_nothing_is_left_of_a_message(broker, clock, tmp_path):
    receiver = broker.receiver()
    broker.declare_queue(QueueSpec("brief", auto_delete=True))
    send(broker, b"acked", b"expired", ttl=100.0)
    send(broker, b"purged", b"also purged", queue="other")
    send(broker, b"dropped", queue="brief")
    send(broker, b"deleted", queue="third")
    broker.ack(receiver.poll("q", 1))
    broker.purge("other")
    broker.dead_letter(take(receiver, "brief"), "reason")
    broker.delete_queue("third")
    clock.advance(100)
    assert receiver.poll("q", 1) == []
    assert _rows(tmp_path) == (0, 0)


# --- locks and durability -------------------------------------------------------------------------


@pytest.fixture
def locked(broker, tmp_path) -> Iterator[None]:
    """Another process writes, and takes its time."""
    send(broker, b"m")
    c = sqlite3.connect(tmp_path / "broker.sqlite3", isolation_level=None)
    c.execute("BEGIN IMMEDIATE")
    yield
    c.execute("ROLLBACK")
    c.close()


def test_looking_in_vain_waits_for_nobody(broker, locked):
    receiver = broker.receiver()
    with Stopwatch() as watch:
        assert receiver.poll("other", 1) == []
        assert receiver.next_due() is None
        assert broker.size("q").ready == 1
        assert bodies(broker.peek("q")) == [b"m"]
    assert watch.seconds < gwi_celery.sqlite.BUSY_TIMEOUT / 2


def test_a_lock_that_lasts_is_a_temporary_error(tmp_path, monkeypatch):
    monkeypatch.setattr(gwi_celery.sqlite, "BUSY_TIMEOUT", 0.05)
    broker = EmbeddedBroker(tmp_path)
    send(broker, b"m")
    c = sqlite3.connect(tmp_path / "broker.sqlite3", isolation_level=None)
    c.execute("BEGIN IMMEDIATE")
    for use in (
        lambda: send(broker, b"n"),
        lambda: broker.receiver().poll("q", 1),
        broker.connect,
    ):
        with pytest.raises(BrokerUnavailable, match="try again"):
            use()
    c.execute("ROLLBACK")
    c.close()
    assert bodies(broker.receiver().poll("q", 2)) == [b"m"]
    broker.close()


def test_a_publish_is_synced_and_a_lease_is_not(broker):
    receiver = broker.receiver()
    send(broker, b"warm up")
    statements: list[str] = []
    with broker.database.read() as c:
        c.set_trace_callback(statements.append)

    def synced(use) -> list[str]:
        statements.clear()
        use()
        return [s.partition("=")[2] for s in statements if s.startswith("PRAGMA synchronous")]

    held = []
    assert synced(lambda: send(broker, b"m")) == ["FULL"]
    assert synced(lambda: held.extend(receiver.poll("q", 10))) == ["NORMAL"]
    assert synced(lambda: broker.extend(held, 60.0)) == ["NORMAL"]
    assert synced(lambda: broker.nack(held[0])) == ["NORMAL"]
    assert synced(lambda: broker.ack(held[1:])) == ["NORMAL"]
    assert synced(lambda: receiver.poll("empty", 1)) == []  # not even a transaction that writes


def test_no_call_takes_longer_on_a_long_queue(broker, clock):
    """Counted in steps of SQLite's machine, on a queue of 15,000 in all states."""
    receiver = broker.receiver()
    receiver.subscribe(_declared(broker))
    steps = 0

    def step():
        nonlocal steps
        steps += 1

    with broker.database.read() as c:
        c.set_progress_handler(step, 1)

    def cost(use) -> int:
        nonlocal steps
        steps = 0
        use()
        return steps

    def costs() -> dict[str, int]:
        send(broker, b"m", b"n", b"o", priority=5)
        held = []
        found = {
            "publish": cost(lambda: send(broker, b"m")),
            "delayed publish": cost(lambda: send(broker, b"m", delay=50.0)),
            "poll": cost(lambda: held.extend(receiver.poll("q", 3))),
            "extend": cost(lambda: broker.extend(held, 60.0)),
            "nack": cost(lambda: broker.nack(held[0])),
            "dead_letter": cost(lambda: broker.dead_letter(held[1], "reason")),
            "ack": cost(lambda: broker.ack(held[2:])),
            "next_due": cost(receiver.next_due),
            "peek": cost(lambda: broker.peek("q", 2)),
            "idle poll": cost(lambda: receiver.poll("other", 1)),
        }
        receiver._busy.clear()
        found["poll after a look"] = cost(lambda: receiver.poll("q", 1))
        return found

    costs()
    short = costs()
    for options in ({}, {"delay": 1000.0}, {"priority": 9}):
        broker.publish_many([("", "q", OutgoingMessage(b"m", **options))] * 5_000)
    assert len(receiver.poll("q", 5_000)) == 5_000
    long = costs()

    assert broker.size("q").total > 15_000
    assert cost(lambda: broker.size("q")) < 10 * 15_000
    assert {name: n for name, n in long.items() if n > 2 * short[name] + 50} == {}


# --- the file -------------------------------------------------------------------------------------


def test_a_file_that_is_no_database(tmp_path):
    path, content = tmp_path / "broker.sqlite3", b"not a database at all" * 100
    path.write_bytes(content)
    broker = EmbeddedBroker(tmp_path)
    for use in (broker.connect, lambda: send(broker, b"m"), lambda: broker.size("q")):
        with pytest.raises(BrokerUnusable, match=r"not a SQLite database.*move the file away"):
            use()
    assert path.read_bytes() == content
    broker.close()


def test_somebody_elses_database(tmp_path):
    path = tmp_path / "broker.sqlite3"
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE theirs (x)")
    c.close()
    with pytest.raises(BrokerUnusable, match="not a gwi_celery broker"):
        EmbeddedBroker(tmp_path).connect()


def test_a_store_is_not_a_broker(tmp_path):
    from gwi_celery.stores.sqlite import SqliteStore

    store = SqliteStore(tmp_path)
    store.cleanup()
    store.close()
    (tmp_path / "store.sqlite3").rename(tmp_path / "broker.sqlite3")
    with pytest.raises(BrokerUnusable, match="not a gwi_celery broker"):
        EmbeddedBroker(tmp_path).connect()


def test_another_version(tmp_path):
    broker = EmbeddedBroker(tmp_path)
    broker.connect()
    broker.close()
    with sqlite3.connect(tmp_path / "broker.sqlite3") as c:
        c.execute("PRAGMA user_version=99")
    c.close()
    with pytest.raises(BrokerUnusable, match="version 99"):
        EmbeddedBroker(tmp_path).connect()


def test_a_file_of_an_earlier_release_goes_on(tmp_path):
    """Its schema had no attempts and no paused queues."""
    path = tmp_path / "broker.sqlite3"
    script = schema.SCHEMA.replace("attempts INTEGER NOT NULL DEFAULT 0,", "")
    script = script.replace(",\n    paused INTEGER NOT NULL DEFAULT 0", "")
    with sqlite3.connect(path) as c:
        for statement in script.split(";"):
            c.execute(statement)
        c.execute("INSERT INTO queues VALUES (1, ?, 1, 0, NULL, NULL, NULL, NULL, NULL)", (b"q",))
        c.execute("INSERT INTO messages VALUES (1, 1, 0, NULL, NULL, 19, 0, 9e9)")
        c.execute("INSERT INTO bodies VALUES (1, ?, '{}')", (b"m",))
        c.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        c.execute("PRAGMA user_version=1")
    c.close()
    for _ in range(2):
        broker = EmbeddedBroker(tmp_path, max_deliveries=2)
        delivery = take(broker.receiver())
        assert (delivery.data, delivery.attempts) == (b"m", 0)
        broker.give_back(delivery)
        broker.close()


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerUnusable, match="folder"):
        EmbeddedBroker(tmp_path / "file" / "folder").connect()


def test_a_full_disk_loses_nothing(broker, tmp_path):
    """Held to a few pages more than it has; then the space is back."""
    receiver = broker.receiver()
    receiver.subscribe(_declared(broker))

    def limit_pages(pages: int) -> None:
        with broker.database.read() as c:  # one thread: always the same connection
            c.execute(f"PRAGMA max_page_count={pages}")

    with broker.database.read() as c:
        pages = c.execute("PRAGMA page_count").fetchone()[0]
    limit_pages(pages + 30)
    kept = []
    with pytest.raises(BrokerUnavailable, match=r"no space left.*try again"):
        for number in range(1000):
            send(broker, b"%d" % number + b"x" * 1000)
            kept.append(number)
    assert len(kept) > 20
    with pytest.raises(BrokerUnavailable, match="no space left"):
        broker.publish_many(
            [("", "q", OutgoingMessage(b"small")), ("", "q", OutgoingMessage(b"x" * 99999))]
        )
    assert broker.size("q") == QueueSize(ready=len(kept), delayed=0, leased=0)

    # What makes space works at once, for it needs none.
    broker.ack(receiver.poll("q", 5))
    send(broker, b"fits again")

    limit_pages(1_000_000)
    send(broker, b"x" * 99999)
    rest = [bytes(d.data).rstrip(b"x") for d in drain(receiver)]
    assert rest == [*(b"%d" % number for number in kept[5:]), b"fits again", b""]


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def memories() -> Iterator[None]:
    yield
    for name in ("one", "other"):
        forget_memory(name)


def test_memories_are_shared_by_name(memories):
    producer, worker, other = memory_broker("one"), memory_broker("one"), memory_broker("other")
    send(producer, b"m")
    producer.close()
    assert not other.has_queue("q")
    receiver = worker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    send(memory_broker("one"), b"n")
    assert readable(receiver)
    assert bodies(receiver.poll("q", 2)) == [b"m", b"n"]


def test_a_memory_without_a_name_is_its_owners(memories):
    mine, yours = EmbeddedBroker(None), EmbeddedBroker(None)
    send(mine, b"m")
    assert not yours.has_queue("q")
    mine.close()
    with pytest.raises(BrokerUnusable, match="closed"):
        mine.has_queue("q")
    yours.close()


def test_forgetting_a_memory(memories):
    old = memory_broker("one")
    send(old, b"m")
    forget_memory("one")
    forget_memory("one")
    assert not memory_broker("one").has_queue("q")
    with pytest.raises(BrokerUnusable, match="closed"):
        send(old, b"m")


def test_a_memory_receiver_that_was_dropped_counts_as_dead(memories):
    broker = memory_broker("one")
    broker.declare_queue(QueueSpec("q", auto_delete=True))
    receiver = broker.receiver()
    receiver.subscribe("q")
    broker.housekeep()
    assert broker.has_queue("q")
    del receiver
    gc.collect()
    broker.housekeep()
    assert not broker.has_queue("q")


_FORKS_A_MEMORY = """
import os
from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.embedded import memory_broker
from gwi_celery.errors import BrokerUnusable
memory_broker("one").publish("", "q", OutgoingMessage(b"m"))
if os.fork() == 0:
    try:
        memory_broker("one").publish("", "q", OutgoingMessage(b"m"))
    except BrokerUnusable as exc:
        print(exc, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_memory_does_not_cross_a_fork(tmp_path):
    run = zygote.run(_FORKS_A_MEMORY, folder=tmp_path)
    assert "lives in one process" in run.stdout
    assert "embedded:///" in run.stdout


def _declared(broker, name="q"):
    broker.declare_queue(QueueSpec(name))
    return name
