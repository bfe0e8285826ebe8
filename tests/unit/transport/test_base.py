"""What the transport does on its own account: its URL, its timer, and stopping."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from celery import signals
from kombu import Connection, Consumer
from kombu.asynchronous import Hub

from gwi_celery.transport import embedded, register
from tests.machine import PATIENCE

register()


@pytest.mark.parametrize("name", ["gwi", "with space", "per%cent", "a/b"])
def test_failover_goes_to_the_next_url_and_keeps_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    live = f"embedded://{str(folder).replace('%', '%25')}"
    with Connection(f"embedded:///dev/null/none;{live}") as connection:
        connection.ensure_connection(max_retries=2, interval_start=0)
        with connection.SimpleQueue("q") as queue:
            queue.put({"n": 1})
            message = queue.get(timeout=PATIENCE)
            message.ack()
        assert message.payload == {"n": 1}
        assert list(folder.glob("*.sqlite3")), "in the folder that was named"
        uri = connection.as_uri()
    assert embedded.open_broker(uri).has_queue("q"), "what as_uri() says leads there too"


def test_a_url_is_kept_as_written(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/Gwi?lease_seconds=10"
    with Connection(url) as connection:
        assert connection.transport.url == connection.as_uri() == url
        assert connection.transport.broker.lease_seconds == 10


def test_a_wait_for_messages_ends_when_the_worker_is_told_to_stop(tmp_path: Path) -> None:
    with Connection(f"embedded://{tmp_path}") as connection, connection.SimpleQueue("q") as queue:
        assert queue.qsize() == 0
        ended = threading.Event()

        def drain() -> None:
            for _ in range(2):
                with pytest.raises(socket.timeout):
                    connection.drain_events(timeout=600)
            ended.set()

        thread = threading.Thread(target=drain, daemon=True)
        thread.start()
        for _ in range(300):  # heard from the first wait on
            signals.worker_shutting_down.send(sender="test")
            if ended.wait(0.1):
                break
        assert ended.is_set()
        thread.join(PATIENCE)
        queue.put({"n": 1})
        assert queue.get(timeout=PATIENCE).payload == {"n": 1}, "what is there is still delivered"


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def test_an_event_loop_has_one_timer_which_comes_forward(tmp_path: Path, hub: Hub) -> None:
    """Not one for each message: a cancelled one stays in the loop's memory until its time."""
    got: list[int] = []
    with (
        Connection(f"embedded://{tmp_path}") as connection,
        connection.SimpleQueue("q") as queue,
        Consumer(connection, [queue.queue], callbacks=[lambda n, _: got.append(n)], no_ack=True),
    ):
        transport = connection.transport
        transport.register_with_event_loop(connection, hub)
        for n in range(10):
            queue.put(n)
            while len(got) <= n:
                hub.run_once()
            transport.on_readable()  # nothing is left: it waits for a timer
            assert len(hub.timer) == 1
        due = datetime.now(timezone.utc) + timedelta(seconds=0.2)
        queue.put(10, headers={"eta": due.isoformat()})
        while len(got) <= 10:
            hub.run_once()
        assert due <= datetime.now(timezone.utc) < due + timedelta(seconds=20), "not with the look"
        assert len(hub.timer) <= 2
        transport.unregister_from_event_loop(connection, hub)
