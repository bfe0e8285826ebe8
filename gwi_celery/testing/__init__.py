"""What users need in their own tests: emulators, twins of Google's services, and nodes for pytest-celery.

Nothing here is imported by the package itself.
"""
