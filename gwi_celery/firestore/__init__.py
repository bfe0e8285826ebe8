"""Google Cloud Firestore: the one place that imports its library (but for tests and ``doctor``).

``client`` sends commits, reads and queries, whose values are in ``documents``; ``listener`` waits for
changes; ``objects`` keeps large values in Cloud Storage; ``url`` says which database, and ``indexes``
what it needs. The store is in ``gwi_celery.stores.firestore``.
"""
