"""The releases of Celery and Kombu that are tested, and what of their insides is relied on.

Whatever differs between them is asked for here, by its presence rather than by a number.
"""

from __future__ import annotations

import warnings
from typing import Final

import celery
import kombu

#: First release that is tested, and the first that is not.
TESTED: Final = ((5, 4), (5, 8))

#: What is used of Celery and Kombu beyond their documentation: module, then a path of attributes. A
#: test looks each up, in every release that is supported.
INTERNALS: Final = (
    ("celery", "Task.request_stack"),
    ("celery.app.amqp", "AMQP.Connection"),
    ("celery.app.base", "Celery.on_after_configure"),
    ("celery.app.base", "Celery.steps"),
    ("celery.app.trace", "build_tracer"),
    ("celery.app.trace", "setup_worker_optimizations"),
    ("celery.app.utils", "Settings.value_set_for"),
    ("celery.backends.base", "KeyValueStoreBackend._get_result_meta"),
    ("celery.backends.base", "KeyValueStoreBackend._ensure_not_eager"),
    ("celery.backends.base", "KeyValueStoreBackend.chord_error_from_stack"),
    ("celery.backends.base", "KeyValueStoreBackend.prepare_exception"),
    ("celery.backends.base", "KeyValueStoreBackend.exception_to_python"),
    ("celery.backends.base", "KeyValueStoreBackend.exception_safe_to_retry"),
    ("celery.worker.consumer", "Consumer.create_task_handler"),
    ("celery.worker.request", "Request._announce_revoked"),
    ("celery.worker.request", "Request.on_timeout"),
    ("celery.worker.request", "Request.on_failure"),
    ("celery.worker.request", "Request.acknowledge"),
    ("celery.worker.state", "requests"),
    ("kombu", "Connection._init_params"),
    ("kombu.transport", "TRANSPORT_ALIASES"),
    ("kombu.transport", "get_transport_cls"),
    ("kombu.transport.virtual", "Channel._get_message_priority"),
)


def warn_outside() -> None:
    """Say so where Celery or Kombu is of a release that nobody has tested this package with."""
    first, after = TESTED
    for module in (celery, kombu):
        version = tuple(int(part) for part in module.__version__.split(".")[:2])
        if not first <= version < after:
            warnings.warn(
                f"gwi_celery is tested with {module.__name__} {first[0]}.{first[1]} up to, not "
                f"including, {after[0]}.{after[1]}, and this is {module.__version__}: jobs may get "
                "lost, or run twice. Install a tested release, or run this package's tests with it",
                stacklevel=3,
            )
