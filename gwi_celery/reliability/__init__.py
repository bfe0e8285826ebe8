"""What makes a Celery task reliable. Read in this order: task, run, call, options."""
