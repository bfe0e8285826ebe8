"""What makes a Celery task reliable. Read in this order: task, inside, attempt, job, call, options."""

from gwi_celery import blobs as blobs  # 0.1's documentation imports it from here
