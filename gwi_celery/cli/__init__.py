"""``celery -A app gwi ...``: one file for each command, or group of them. See :mod:`.frame`."""

from gwi_celery.cli.root import gwi

__all__ = ["gwi"]
