"""Embedded brokers in a process's memory, by name."""

from __future__ import annotations

from gwi_celery.brokers.embedded.broker import RETENTION, EmbeddedBroker
from gwi_celery.brokers.embedded.files import Memory
from gwi_celery.clock import SYSTEM_CLOCK, Clock

_memories: dict[str, Memory] = {}


def memory_broker(
    name: str = "default",
    *,
    clock: Clock = SYSTEM_CLOCK,
    lease_seconds: float = 30.0,
    max_deliveries: int = 20,
    retention: float = RETENTION,
) -> EmbeddedBroker:
    """A broker on this process's memory of that name. All brokers of one name share its messages.

    The memory outlives the broker's ``close()``, as a server would: it lasts as long as the
    process, or until :func:`forget_memory`.
    """
    return EmbeddedBroker(
        None,
        clock=clock,
        lease_seconds=lease_seconds,
        max_deliveries=max_deliveries,
        retention=retention,
        memory=_memories.setdefault(name, Memory()),
    )


def forget_memory(name: str = "default") -> None:
    """Drop the memory of that name and all it holds. Brokers still on it raise BrokerUnusable."""
    memory = _memories.pop(name, None)
    if memory is not None:
        memory.database.close()
