"""Google Cloud Firestore: the one place that imports its library.

``client`` sends commits, reads and queries; ``documents`` is what it sends and answers; ``url``
says where to. The store is in ``gwi_celery.stores.firestore``.
"""
