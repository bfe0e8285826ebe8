"""``self.progress(done, total, "parsing")``: shown in the job's record and in its unfinished result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gwi_celery.errors import InvalidCall
from gwi_celery.reliability.fields import is_number
from gwi_celery.stores.base import Progress
from gwi_celery.text import safe_error, shown

if TYPE_CHECKING:
    from gwi_celery.reliability.direct import DirectJob
    from gwi_celery.reliability.job import RunningJob
    from gwi_celery.reliability.task import ReliableTask

logger = logging.getLogger(__name__)

#: State of an unfinished Celery result that shows the job's progress.
STATE = "PROGRESS"


def show(
    task: ReliableTask,
    job: RunningJob | DirectJob,
    done: float,
    total: float | None,
    text: str,
) -> None:
    """Write the progress, at most once a second. Raises InvalidCall, and all that ``check`` does."""
    for name, number in (("done", done), ("total", total)):
        if number is not None and not is_number(number):
            raise InvalidCall(f"{task.name}: progress({name}=) is {shown(number)}: pass a number")
    if not isinstance(text, str):
        raise InvalidCall(f"{task.name}: progress(text=) is {shown(text)}: pass a str")
    if not job.progress(Progress(done, total, text)):
        return
    request = task.request
    if request.ignore_result or task.ignore_result:
        return
    meta = {"done": done, "total": total, "text": text}
    try:
        # Only after the record, which only the holder can write. It never replaces a final result.
        task.backend.store_result(request.id, meta, STATE, request=request)
        request._gwi_shown = True
    except Exception as exc:
        logger.info("%s[%s] can't show its progress: %s", task.name, request.id, safe_error(exc))
