"""Defaults of the Firestore vendor."""

from __future__ import annotations

CELERY_FIRESTORE_BACKEND = "celery_firestore_backend"
CELERY_FIRESTORE_PROCESS_BACKEND = "celery_firestore_process_backend"
FIRESTORE_PORT = "8080/tcp"
#: Seconds; the image starts a JVM.
FIRESTORE_CONTAINER_TIMEOUT = 120
FIRESTORE_PREFIX = "firestore://"
