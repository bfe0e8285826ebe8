"""Fixtures of all suites: the emulators, as the package gives them to its users."""

from gwi_celery.testing.emulator_fixtures import firestore_emulator, pubsub_emulator

__all__ = ["firestore_emulator", "pubsub_emulator"]
