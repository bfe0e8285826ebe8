"""The worker's app in tests: pytest-celery fills in the three lines that say None or name the app.

As pytest-celery's own template, and set up for reliable tasks.
"""

from __future__ import annotations

from celery import Celery

from gwi_celery import setup

imports = None

app = Celery("celery_test_app")
config = None

if config:
    app.config_from_object(config)

setup(app)
