"""Celery's other ways to call a task: a custom ``__call__``, maps, Django's methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from celery._state import _task_stack
from kombu.utils.imports import symbol_by_name

from gwi_celery.errors import InvalidCall

if TYPE_CHECKING:
    from gwi_celery.reliability.task import ReliableTask

_MAPS = ("celery.map", "celery.starmap")
_DJANGO_TASK = "celery.contrib.django.task:DjangoTask"
_DJANGO_VERBS = ("delay_on_commit", "apply_async_on_commit")


def keep_inside(cls: type[ReliableTask], own: Any) -> None:
    """Run a custom ``__call__`` inside the attempt, whether it calls super() or ``self.run``."""
    custom = cls.__call__
    if custom is own or hasattr(custom, "_gwi_inside"):
        return

    @wraps(custom)
    def __call__(self: ReliableTask, *args: Any, **kwargs: Any) -> Any:
        if type(self).__call__ is not __call__:  # called by a subclass through super()
            return custom(self, *args, **kwargs)
        if self.starts_an_attempt():
            return self.begin_attempt(partial(custom, self), args, kwargs)
        refuse_mapped(self)
        # As in Celery's own __call__: a plain call has its own request.
        _task_stack.push(self)
        self.push_request(args=args, kwargs=kwargs)
        try:
            return custom(self, *args, **kwargs)
        finally:
            self.pop_request()
            _task_stack.pop()

    __call__._gwi_inside = True  # type: ignore[attr-defined]
    cls.__call__ = __call__  # type: ignore[method-assign]


def is_inside(task: ReliableTask) -> bool:
    """Whether the task has a custom ``__call__`` that :func:`keep_inside` wrapped."""
    return hasattr(type(task).__call__, "_gwi_inside")


def mapped(task: ReliableTask) -> InvalidCall:
    """The error of a call by map, starmap or chunks."""
    return InvalidCall(
        f"{task.name}: map, starmap and chunks call a task as a plain function inside one task of "
        f"Celery's, so nothing would be recorded. Send each call as a job: "
        f"group({task.name.rpartition('.')[2]}.s(x) for x in ...)"
    )


def refuse_mapped(task: ReliableTask) -> None:
    """Raises InvalidCall if a worker's ``celery.map`` or ``celery.starmap`` calls the task."""
    caller = _task_stack.top
    if caller is not None and caller.name in _MAPS and not caller.request.called_directly:
        raise mapped(task)


def add_django_verbs(cls: type[ReliableTask], app: Any) -> None:
    """Add the methods that Celery gives the default tasks of a Django app."""
    if app.task_cls != _DJANGO_TASK:
        return
    django_task: Any = symbol_by_name(_DJANGO_TASK)
    for verb in _DJANGO_VERBS:
        if not hasattr(cls, verb):
            function: Callable[..., Any] = getattr(django_task, verb)
            setattr(cls, verb, function)
