"""Defaults of the Pub/Sub vendor."""

from __future__ import annotations

CELERY_PUBSUB_BROKER = "celery_pubsub_broker"
CELERY_PUBSUB_PROCESS_BROKER = "celery_pubsub_process_broker"
CELERY_PUBSUB_TWIN_BROKER = "celery_pubsub_twin_broker"
PUBSUB_PORT = "8085/tcp"
#: Seconds; the image starts a JVM.
PUBSUB_CONTAINER_TIMEOUT = 120
PUBSUB_PREFIX = "pubsub://"
