"""Remote control's changes of a task's options: refused if they can't work, as when a worker starts.

Celery checks the syntax of a rate only. A negative rate keeps a worker busy with waiting, and a negative
time limit ends every job of the task.
"""

from __future__ import annotations

from typing import Any

from celery.worker import control

from gwi_celery.reliability import declared


def install() -> None:
    """Have workers of this process check what remote control asks for. Safe to call twice."""
    control.Panel.data.update(rate_limit=_rate_limit, time_limit=_time_limit)


def _rate_limit(state: Any, task_name: str, rate_limit: Any, **given: Any) -> Any:
    why = declared.wrong(str(task_name), {"rate_limit": rate_limit})
    return control.rate_limit(state, task_name, rate_limit, **given) if why is None else _no(why)


def _time_limit(
    state: Any, task_name: str | None = None, hard: Any = None, soft: Any = None, **given: Any
) -> Any:
    why = declared.wrong(str(task_name), {"time_limit": hard, "soft_time_limit": soft})
    return control.time_limit(state, task_name, hard, soft, **given) if why is None else _no(why)


def _no(why: str) -> dict[str, str]:
    return {"error": f"{why}. Nothing was changed"}
