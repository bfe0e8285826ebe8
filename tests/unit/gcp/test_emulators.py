"""The text for an emulator that doesn't answer."""

from __future__ import annotations

from gwi_celery.gcp.emulators import FIRESTORE_HOST, unavailable


def test_only_here_another_one_is_to_be_started() -> None:
    told = unavailable("Firestore", FIRESTORE_HOST, "firestore.test:8080")
    assert "the Firestore emulator at firestore.test:8080 is unavailable" in told
    assert "gwi_celery.testing" not in told
    assert "--only firestore" in unavailable("Firestore", FIRESTORE_HOST, "127.0.0.1:8080")
