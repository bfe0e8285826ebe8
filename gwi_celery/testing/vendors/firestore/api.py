"""The Firestore vendor's node."""

from __future__ import annotations

from pytest_celery import CeleryTestBackend


class FirestoreTestBackend(CeleryTestBackend):
    pass
