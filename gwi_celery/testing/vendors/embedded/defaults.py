"""Names of the embedded vendor's fixtures."""

CELERY_EMBEDDED_BROKER = "celery_embedded_broker"
CELERY_EMBEDDED_BACKEND = "celery_embedded_backend"
EMBEDDED_PREFIX = "embedded://"
