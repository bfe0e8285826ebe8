"""What a reliable app needs of Celery: checked by ``setup()``, and again when a worker starts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gwi_celery.errors import ConfigurationError
from gwi_celery.options import LONGEST, SECONDS

#: Setting -> (its value, what would happen otherwise).
REQUIRED: dict[str, tuple[Any, str]] = {
    "task_acks_late": (True, "a worker that is killed would lose its jobs"),
    "task_reject_on_worker_lost": (True, "a pool process that is killed would lose its job"),
    "task_retry_on_worker_lost": (False, "a killed job's retry would count as a new submission"),
    "worker_prefetch_multiplier": (1, "a worker would keep jobs from others while it is busy"),
    "task_serializer": ("json", "duplicates could not be recognised by their payload"),
    "result_serializer": ("json", "results could not be answered from the store"),
    "accept_content": (["json"], "a message could run code by being read"),
    "result_accept_content": (["json"], "a result could run code by being read"),
    "broker_connection_retry_on_startup": (True, "a broker that starts late would stop workers"),
}


def check(conf: Any) -> None:
    """Raises ConfigurationError for the first setting that doesn't have the value that it must."""
    for name, (needed, otherwise) in REQUIRED.items():
        if conf.value_set_for(name) and conf[name] != needed:
            if "auth" in (conf[name] if isinstance(conf[name], (list, tuple)) else [conf[name]]):
                raise ConfigurationError(
                    f"app.conf.{name} has Celery's 'auth' serializer: it wraps a message's body, so "
                    "that duplicates could not be recognised by their payload, and leaves its headers "
                    "unsigned. Set signing_keys instead, which sign all of a message: "
                    "docs/security.md"
                )
            raise ConfigurationError(
                f"app.conf.{name} is {conf[name]!r}, and reliable jobs need {needed!r}: otherwise "
                f"{otherwise}. Leave it out"
            )
    expires = conf.result_expires
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if expires is not None and SECONDS.convert(expires, "app.conf.result_expires") > LONGEST:
        raise ConfigurationError(
            f"app.conf.result_expires is {expires!r}: it must be at most {LONGEST:.0f} seconds (31 "
            "years), or None, which keeps results for good"
        )
