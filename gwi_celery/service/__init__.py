"""The worker as a web service. Read in this order: app, push, admission, execute, auth, shutdown.

::

    celery -A shop gwi serve          # or, under another server: create_app(celery_app) is ASGI

Needs the extra ``http``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwi_celery.service.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from gwi_celery.service.app import create_app
    except ImportError as exc:
        raise ImportError(f"{exc}: pip install 'gwi-celery[http]'") from exc
    return create_app
