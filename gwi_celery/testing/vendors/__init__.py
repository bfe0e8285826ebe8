"""Nodes for pytest-celery, in its own form: ``vendors/<name>/{defaults,container,api,fixtures}.py``.

``embedded`` is a folder; ``pubsub`` is a broker and ``firestore`` a result backend, each as a
container for those who have Docker and as a process for those who have not.
"""
