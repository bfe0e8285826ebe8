"""Dead letters before their broker drops them: announced days before, then archived if that is set.

The archive is a folder or a bucket, ``dead_letter_archive``. Its files hold the lines that ``gwi dlq
import`` takes. A file's name depends on the letters in it, so that a turn that was cut short writes the
same file again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from gwi_celery import queues
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import StoreUnavailable
from gwi_celery.firestore.url import FirestoreURL
from gwi_celery.firestore.url import parse as parse_firestore
from gwi_celery.ids import digest
from gwi_celery.integration import broker_for, integration, settings_for
from gwi_celery.queues import DeadLetter
from gwi_celery.queues.dead import recorded
from gwi_celery.telemetry.events import emit

logger = logging.getLogger(__name__)

_DAY: Final = 86_400.0
#: Seconds before dead letters are dropped at which that is announced, and at which they are archived;
#: shorter where they are kept for less than a week.
ANNOUNCED: Final = 2 * _DAY
ARCHIVED: Final = 1 * _DAY
_WEEK: Final = 7 * _DAY
#: Letters in one file.
_BATCH: Final = 500
_GCS: Final = "gs://"


def within(app: Any, seconds: float) -> float:
    """``seconds``, or the same share of a shorter time where letters are kept for less than a week."""
    return min(seconds, seconds / _WEEK * broker_for(app).dead_kept)


def announce_expiring(app: Any) -> None:
    """Log whose dead letters are dropped within :data:`ANNOUNCED`, and tell metrics their number."""
    seconds = within(app, ANNOUNCED)
    found = _expiring(app, seconds)
    archive = settings_for(app).dead_letter_archive
    for queue, count in found.items():
        logger.warning(
            "%d dead letters of queue %r are %s within %g days: redrive them, or keep them by "
            "`celery gwi dlq export FILE -Q %s`",
            *(count, queue, "archived" if archive else "dropped", seconds / _DAY, queue),
        )
    emit("dead letters expiring", task_id="", count=sum(found.values()))


def archive_expiring(app: Any) -> int:
    """Move the dead letters that are dropped within :data:`ARCHIVED` to the archive; returns how many.

    0 without the setting. Raises StoreError, and loses nothing, if the archive can't be written.
    """
    place = settings_for(app).dead_letter_archive
    if not place:
        return 0
    seconds, archived = within(app, ARCHIVED), 0
    write = _writer(app, place)
    for queue in _expiring(app, seconds):
        before = time.time() + seconds
        due = [
            letter
            for letter in queues.dead_letters(app, queue, look=True)
            if letter.whole and letter.expires_at is not None and letter.expires_at <= before
        ]
        for start in range(0, len(due), _BATCH):
            batch = sorted(due[start : start + _BATCH], key=lambda letter: letter.died_at)
            write(
                _name(queue, batch), "".join(line + "\n" for line in queues.export(batch)).encode()
            )
            archived += queues.purge(app, batch)
            logger.warning(
                "%d dead letters of queue %r are archived in %s", len(batch), queue, place
            )
    return archived


def _expiring(app: Any, seconds: float) -> dict[str, int]:
    """Queue -> how many of its dead letters are dropped within that time; on Pub/Sub of 1,000 at most."""
    broker, records = broker_for(app), recorded(app)
    if isinstance(broker, EmbeddedBroker):
        return broker.expiring(seconds)
    if records is None:
        return {}  # looking would lease them; infra/monitoring has an alert instead
    return dict(Counter(letter.queue for letter in records.expiring(time.time() + seconds)))


def _name(queue: str, letters: list[DeadLetter]) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(letters[0].died_at))
    return f"{quote(queue, safe='')}/{day}-{digest('archive', *(x.id for x in letters))[:16]}.jsonl"


def _writer(app: Any, place: str) -> Callable[[str, bytes], None]:
    if not place.startswith(_GCS):
        return lambda name, data: _write_file(Path(place) / name, data)
    from gwi_celery.firestore.objects import Bucket

    name, _, prefix = place[len(_GCS) :].partition("/")
    below = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    bucket = Bucket(_bucket_url(app, name))
    return lambda file, data: bucket.put(f"{below}{file}", data)


def _bucket_url(app: Any, bucket: str) -> FirestoreURL:
    """The bucket, with the project and the endpoint of a store on Firestore."""
    settings = integration(app).settings
    url = settings.effective_store_url
    if url.startswith("firestore:"):
        known = vars(parse_firestore(url))
        return FirestoreURL(**{**known, "gcs_bucket": bucket})
    return FirestoreURL(settings.project, gcs_bucket=bucket)


def _write_file(path: Path, data: bytes) -> None:
    """Write all of it or nothing, synced to disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreUnavailable(f"the archive of dead letters can't be written: {exc}") from exc
