"""What operators do with queues: look, pause, and deal with dead letters and delayed messages.

``celery -A app gwi queues|dlq|delayed`` is this on a command line. All of it works on every broker of
this package. What Pub/Sub can't tell, the store does: it has records of dead letters and of jobs that
wait, and a flag for a pause. Counts of messages need the extra ``monitoring``. Each change is first
recorded in the audit trail (``gwi_celery.audit``).
"""

from gwi_celery.brokers.base import QueueState
from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.queues.dead import count, dead_letters, purge, redrive
from gwi_celery.queues.held import Waiting, delayed, where
from gwi_celery.queues.lines import export, load
from gwi_celery.queues.settling import cancel_delayed, release_delayed
from gwi_celery.queues.states import is_paused, pause, queues, resume

__all__ = [
    "DeadLetter",
    "QueueState",
    "Waiting",
    "cancel_delayed",
    "count",
    "dead_letters",
    "delayed",
    "export",
    "is_paused",
    "load",
    "pause",
    "purge",
    "queues",
    "redrive",
    "release_delayed",
    "resume",
    "where",
]
