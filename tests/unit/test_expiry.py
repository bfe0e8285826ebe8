"""Dead letters don't expire unannounced, and go to an archive where one is set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import broker_for, queues, setup
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.errors import ConfigurationError, StoreUnavailable
from gwi_celery.expiry import ANNOUNCED, ARCHIVED, announce_expiring, archive_expiring
from gwi_celery.telemetry import events
from gwi_celery.telemetry.stats import Stats
from gwi_celery.upkeep import Cleaner

#: Headers that a message of Celery's has.
DATA = b'{"headers": {"task": "shop.invoice"}, "body": "", "properties": {}}'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def app(**settings: object) -> Celery:
        app = Celery(f"expiry-{uuid4().hex}", set_as_current=False)
        setup(app, folder=str(tmp_path / "gwi"), **settings)
        made.append(app)
        return app

    yield app
    for each in made:
        broker_for(each).close()
        each.close()


def fill(app: Celery, limit: float) -> None:
    """One that is due and one that isn't, in a queue of an odd name; one elsewhere."""
    broker = broker_for(app)
    broker.declare_queue(QueueSpec("l/te.dead"))
    broker.declare_queue(QueueSpec("celery.dead"))
    broker.publish("", "l/te.dead", OutgoingMessage(DATA, ttl=limit - 60))
    broker.publish("", "l/te.dead", OutgoingMessage(b"2", ttl=limit + 60))
    broker.publish("", "celery.dead", OutgoingMessage(b"3"))


def test_dead_letters_are_announced_days_before_they_are_dropped(make, caplog) -> None:
    app = make()
    fill(app, ANNOUNCED)
    stats = Stats()
    events.listen(stats)
    try:
        announce_expiring(app)
    finally:
        events.ignore(stats)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("1 dead letters of queue 'l/te' are dropped within 2 days")
    assert stats.expiring == 1
    assert archive_expiring(app) == 0, "no archive is set"


def test_they_are_archived_in_a_folder_and_can_be_had_back(make, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    app = make(dead_letter_archive=str(archive))
    fill(app, ARCHIVED)
    assert archive_expiring(app) == 1
    assert archive_expiring(app) == 0
    [file] = [path for path in archive.rglob("*") if path.is_file()]
    assert file.parent == archive / "l%2Fte"
    assert file.stat().st_mode & 0o777 == 0o600
    [line] = file.read_text().splitlines()
    assert json.loads(line)["task"] == "shop.invoice"
    assert queues.count(app) == 2
    assert queues.load(app, [line]) == 1
    assert [dead.data for dead in queues.dead_letters(app, task="shop.invoice")] == [DATA]


def test_nothing_is_lost_where_the_archive_can_t_be_written(make, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    app = make(dead_letter_archive=str(tmp_path / "file" / "archive"))
    fill(app, ARCHIVED)
    with pytest.raises(StoreUnavailable, match="archive"):
        archive_expiring(app)
    assert queues.count(app) == 3
    Cleaner(app, 60)._take_turn()
    assert "could not be announced or archived yet: the archive of dead letters" in caplog.text
    assert (tmp_path / "gwi" / "upkeep.lock").exists(), "what has expired was deleted all the same"


@pytest.mark.parametrize("place", ["gs://", "gs:///x", "s3://bucket"])
def test_a_place_that_is_none_is_refused(make, place: str) -> None:
    with pytest.raises(ConfigurationError, match="dead_letter_archive"):
        make(dead_letter_archive=place)
