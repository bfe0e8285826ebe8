"""The embedded broker. Read in this order: broker, entities, deliveries, receiver, files, tables."""

from gwi_celery.brokers.embedded.broker import RETENTION, EmbeddedBroker
from gwi_celery.brokers.embedded.memory import forget_memory, memory_broker

__all__ = ["RETENTION", "EmbeddedBroker", "forget_memory", "memory_broker"]
