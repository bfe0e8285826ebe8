"""Where dead letters are archived in a bucket, which the Firestore store's URL names the way to."""

from __future__ import annotations

from uuid import uuid4

import pytest

from gwi_celery import queues
from gwi_celery.expiry import ARCHIVED, archive_expiring
from tests.fake_gcs import BUCKET, fake_storage
from tests.unit.test_expiry import fill, make

__all__ = ["make"]


@pytest.mark.emulator
def test_they_are_archived_in_a_bucket(make, firestore_emulator) -> None:
    with fake_storage() as storage:
        store = f"firestore://p-{uuid4().hex[:20]}?gcs_endpoint={storage.endpoint}"
        place = f"gs://{BUCKET}/dead/letters/"
        app = make(store_url=store, broker_url="embedded://:memory:/x", dead_letter_archive=place)
        fill(app, ARCHIVED)
        storage.refuses = 403
        with pytest.raises(Exception, match="refuses bucket"):
            archive_expiring(app)
        assert queues.count(app) == 3
        storage.refuses = None
        assert archive_expiring(app) == 1
        [name] = storage.objects
    assert name.startswith("dead/letters/l%2Fte/")
