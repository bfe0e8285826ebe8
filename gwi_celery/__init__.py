"""Reliable background jobs as ordinary Celery tasks."""

from gwi_celery._version import __version__
from gwi_celery.app import setup
from gwi_celery.batch import publish_batch
from gwi_celery.config import Settings
from gwi_celery.integration import broker_for, store_for
from gwi_celery.reliability.carried import carry
from gwi_celery.reliability.limits import Limit
from gwi_celery.reliability.options import Reliable
from gwi_celery.reliability.task import ReliableTask
from gwi_celery.reliability.typed import reliable_task
from gwi_celery.transport import register as _register
from gwi_celery.transport.leases import message_lease_lost

__all__ = [
    "Limit",
    "Reliable",
    "ReliableTask",
    "Settings",
    "__version__",
    "broker_for",
    "carry",
    "message_lease_lost",
    "publish_batch",
    "reliable_task",
    "setup",
    "store_for",
]

_register()
