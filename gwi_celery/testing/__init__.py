"""What users need in their own tests: emulators, and nodes for pytest-celery.

Nothing here is imported by the package itself.
"""
