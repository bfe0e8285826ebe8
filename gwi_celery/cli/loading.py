"""``celery -A app``: an error of this package while the app's module is imported ends in one sentence.

Celery would print a traceback of whatever is raised there, even if its text says what to do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

#: Modules that hold ``find_app``: Celery's command line, and the one from which that imports it.
_MODULES = ("celery.bin.celery", "celery.app.utils")


def install() -> None:
    """Called while the command line is being imported. Safe to call twice."""
    for name in _MODULES:
        module: Any = sys.modules.get(name)
        find = getattr(module, "find_app", None)
        if find is not None and not hasattr(find, "_gwi_says_why"):
            module.find_app = _saying_why(find)


def _saying_why(find_app: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(find_app)
    def found(*args: Any, **kwargs: Any) -> Any:
        from gwi_celery.errors import GwiError

        try:
            return find_app(*args, **kwargs)
        except GwiError as exc:
            from gwi_celery.cli.frame import failed

            ended = failed(exc)
            ended.show()
            sys.exit(ended.exit_code)  # not an Exception: Celery would print its traceback

    found._gwi_says_why = True  # type: ignore[attr-defined]
    return found
