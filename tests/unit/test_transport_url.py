"""A connection's URL, also after Kombu's failover has taken it apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from kombu import Connection

from gwi_celery.transport import embedded, register

register()


@pytest.mark.parametrize("name", ["gwi", "with space", "per%cent", "a/b"])
def test_failover_goes_to_the_next_url_and_keeps_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    live = f"embedded://{str(folder).replace('%', '%25')}"
    with Connection(f"embedded:///dev/null/none;{live}") as connection:
        connection.ensure_connection(max_retries=2, interval_start=0)
        with connection.SimpleQueue("q") as queue:
            queue.put({"n": 1})
            message = queue.get(timeout=5)
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
