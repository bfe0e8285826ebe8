"""Brokers: what the transport knows of a message queue. See :mod:`gwi_celery.brokers.base`."""
