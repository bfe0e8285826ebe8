"""What this package adds to a Celery worker: consumer, requests, tracer, bootsteps, shutdown."""
