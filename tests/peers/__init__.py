"""Celery's and Kombu's own integration suites on our transports: ``python -m tests.peers``."""
