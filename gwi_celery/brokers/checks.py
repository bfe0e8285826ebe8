"""What every broker refuses, of queues and exchanges."""

from __future__ import annotations

from typing import Final

from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.routing import EXCHANGE_TYPES
from gwi_celery.errors import ConfigurationError, NotFound
from gwi_celery.options import LONGEST

#: The largest number that every database holds as it is.
_MOST: Final = 2**31 - 1


def check_spec(spec: QueueSpec) -> None:
    """Raise ConfigurationError for settings that can't work."""
    if not spec.name:
        raise ConfigurationError("a queue needs a name")
    for setting in ("expires", "message_ttl", "lease_seconds"):
        value = getattr(spec, setting)
        if value is not None:
            check_seconds(f"queue {spec.name!r}: {setting}", value)
    most = spec.max_deliveries
    if most is not None and not (_is(int, most) and 0 <= most <= _MOST):
        raise ConfigurationError(
            f"queue {spec.name!r}: max_deliveries is {most!r}: write 1 to {_MOST}, or 0 for no limit"
        )


def _is(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_seconds(setting: str, seconds: float) -> None:
    """Raise ConfigurationError unless it is above 0, and no longer than a timer can wait."""
    if not _is((int, float), seconds):
        raise ConfigurationError(f"{setting} is {seconds!r}, not a number of seconds")
    if not seconds > 0:
        raise ConfigurationError(f"{setting} is {seconds}: it must be above 0 seconds")
    if seconds > LONGEST:
        raise ConfigurationError(
            f"{setting} is {seconds}: it must be at most {LONGEST:.0f} seconds (31 years)"
        )


def check_exchange_type(name: str, type: str) -> None:
    """Raise ConfigurationError for an unknown type."""
    if type not in EXCHANGE_TYPES:
        raise ConfigurationError(
            f"exchange {name!r} has type {type!r}: use one of {', '.join(EXCHANGE_TYPES)}"
        )


def check_same_type(name: str, found: str | None, type: str) -> None:
    """Raise ConfigurationError unless the existing exchange's type ``found`` is ``type``."""
    if found != type:
        raise ConfigurationError(
            f"exchange {name!r} exists with type {found!r}, not {type!r}: declare it with that type, "
            "or delete it first"
        )


def no_exchange(name: str) -> NotFound:
    return NotFound(f"there is no exchange {name!r}: declare it first")


def no_queue(name: str) -> NotFound:
    return NotFound(f"there is no queue {name!r}: declare it first")


def bound_exchange(name: str, queue: str) -> str:
    """The text for an exchange that isn't deleted, because of ``if_unused``."""
    return (
        f"exchange {name!r} is used: queue {queue!r} is bound to it; unbind it first, or delete the "
        "exchange without if_unused"
    )


def exists_to_stay(name: str) -> ConfigurationError:
    """For a temporary queue with the name of a permanent one."""
    return ConfigurationError(
        f"queue {name!r} is declared as a temporary one (auto_delete, exclusive or expires), "
        "but exists as a permanent one: declare it as before, or delete it first"
    )
