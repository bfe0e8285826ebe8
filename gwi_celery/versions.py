"""The tested releases of Celery and Kombu, and the list of their internals that this package uses.

Differences between releases are detected by the presence of a feature rather than by version.
"""

from __future__ import annotations

import warnings
from typing import Final

import celery
import kombu

#: First release that is tested, and the first that is not.
TESTED: Final = ((5, 4), (5, 8))

#: The undocumented parts of Celery, Kombu and billiard in use: module -> paths of attributes. A test
#: looks each up in every supported release. (Not in worker/, as producers use some, too.)
INTERNALS: Final = {
    "billiard.einfo": (
        "ExceptionInfo.__init__",
        "ExceptionWithTraceback.exc",
    ),
    "billiard.pool": (
        "ApplyResult._accepted",
        "ApplyResult._write_to",
        "ApplyResult.worker_pids",
        "Pool._cache",
        "Pool._pool",
    ),
    "billiard.process": ("BaseProcess._name",),
    "celery": ("Task.request_stack",),
    "celery._state": (
        "_task_stack",
        "get_current_task",
    ),
    "celery.app.amqp": (
        "AMQP.Connection",
        "AMQP._producer_pool",
    ),
    "celery.app.base": (
        "Celery._pool",
        "Celery._tasks",
        "Celery.current_worker_task",
        "Celery.on_after_configure",
        "Celery.steps",
    ),
    "celery.app.trace": (
        "REJECTED",
        "TraceInfo._log_error",
        "TraceInfo.handle_error_state",
        "TraceInfo.handle_failure",
        "_localized",
        "build_tracer",
        "setup_worker_optimizations",
        "task_has_custom",
        "trace_ok_t",
        "traceback_clear",
    ),
    "celery.app.utils": (
        "Settings.changes",
        "Settings.value_set_for",
        "find_app",
    ),
    "celery.backends.base": (
        "EXCEPTION_ABLE_CODECS",
        "KeyValueStoreBackend._cache",
        "KeyValueStoreBackend._ensure_not_eager",
        "KeyValueStoreBackend._get_result_meta",
        "KeyValueStoreBackend._store_result",
        "KeyValueStoreBackend.add_to_chord",
        "KeyValueStoreBackend.apply_chord",
        "KeyValueStoreBackend.base_sleep_between_retries_ms",
        "KeyValueStoreBackend.chord_error_from_stack",
        "KeyValueStoreBackend.ensure_chords_allowed",
        "KeyValueStoreBackend.exception_safe_to_retry",
        "KeyValueStoreBackend.exception_to_python",
        "KeyValueStoreBackend.get_key_for_group",
        "KeyValueStoreBackend.get_key_for_task",
        "KeyValueStoreBackend.on_chord_part_return",
        "KeyValueStoreBackend.prepare_exception",
        "KeyValueStoreBackend.set_chord_size",
    ),
    "celery.beat": ("Scheduler.apply_async",),
    "celery.bin.celery": ("find_app",),
    "celery.canvas": ("_chain.run",),
    "celery.concurrency.asynpool": ("AsynPool.flush",),
    "celery.concurrency.base": ("BasePool.terminate_job",),
    "celery.concurrency.prefork": (
        "TaskPool.flush",
        "TaskPool.register_with_event_loop",
    ),
    "celery.utils.functional": ("_regen",),
    "celery.worker.consumer": (
        "Consumer.Strategies",
        "Consumer._maximum_prefetch_restored",
        "Consumer.call_soon",
        "Consumer.connection_for_read",
        "Consumer.create_task_handler",
        "Consumer.on_invalid_task",
        "Consumer.on_unknown_task",
        "Consumer.reset_rate_limits",
        "Consumer.update_strategies",
    ),
    "celery.worker.control": (
        "Panel.data",
        "rate_limit",
        "time_limit",
    ),
    "celery.worker.request": (
        "Request._already_revoked",
        "Request._announce_revoked",
        "Request._context",
        "Request._request_dict",
        "Request.acknowledge",
        "Request.cancel",
        "Request.execute_using_pool",
        "Request.on_accepted",
        "Request.on_failure",
        "Request.on_success",
        "Request.on_timeout",
        "Request.reject",
        "Request.terminate",
        "Request.time_start",
        "Request.worker_pid",
    ),
    "celery.worker.state": (
        "active_requests",
        "requests",
        "should_stop",
        "task_ready",
    ),
    "celery.worker.worker": ("WorkController.exitcode",),
    "kombu": (
        "Connection._closed",
        "Connection._init_params",
        "Connection._initial_params",
        "Connection.declared_entities",
    ),
    "kombu.asynchronous": (
        "Hub.create_loop",
        "Hub.readers",
        "Hub.remove_reader",
    ),
    "kombu.transport": (
        "TRANSPORT_ALIASES",
        "get_transport_cls",
    ),
    "kombu.transport.virtual": ("Channel._get_message_priority",),
    "kombu.utils.json": ("JSONEncoder",),
}


def warn_outside() -> None:
    """Warn about a release of Celery or Kombu that this package isn't tested with."""
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
