"""What makes a Celery task reliable. Read: task, inside, attempt, settling, job, call, options."""

from gwi_celery import blobs as blobs  # 0.1's documentation imports it from here
