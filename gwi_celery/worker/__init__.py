"""What a worker's main process adds to Celery's: its consumer, its requests, its tracer, how it stops."""
