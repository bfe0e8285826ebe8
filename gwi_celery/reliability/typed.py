"""Reliable tasks whose calls a type checker knows.

Celery has no types. By those of celery-types (``celery-stubs/app/base.pyi``), ``app.task(base=...)``
returns the base, whatever the function takes. With celery-types the results of calls have a type, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from celery import Celery, shared_task

from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability.task import ReliableTask

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    from celery.canvas import Signature
    from celery.result import AsyncResult

    class TypedTask(ReliableTask, Generic[P, R]):
        """What :func:`reliable_task` makes, to a type checker."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
        def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]: ...
        def apply_async(
            self,
            args: Sequence[Any] | None = None,
            kwargs: Mapping[str, Any] | None = None,
            task_id: str | None = None,
            producer: Any = None,
            link: Any = None,
            link_error: Any = None,
            shadow: str | None = None,
            *,
            idempotency_key: str | None = None,
            deadline: float | None = None,
            labels: Mapping[str, str] | None = None,
            **options: Any,
        ) -> AsyncResult[R]: ...

        # Their arguments may be given later, in part.
        def s(self, *args: Any, **kwargs: Any) -> Signature[R]: ...
        def si(self, *args: Any, **kwargs: Any) -> Signature[R]: ...


@overload
def reliable_task(
    app: Celery | None = None, *, bind: Literal[True], **options: Any
) -> Callable[[Callable[Concatenate[Any, P], R]], TypedTask[P, R]]: ...
@overload
def reliable_task(
    app: Celery | None = None, *, bind: Literal[False] = False, **options: Any
) -> Callable[[Callable[P, R]], TypedTask[P, R]]: ...
def reliable_task(app: Celery | None = None, **options: Any) -> Any:
    """``@app.task(base=ReliableTask, ...)`` whose call and ``.delay()`` have the function's types.

    Args:
        app: Without one, the task is Celery's ``shared_task``.
        **options: The decorator's own. ``base`` may be a subclass of ReliableTask.

    Raises ConfigurationError if ``base`` is another class, or if the parentheses were left out.
    """
    if app is not None and not hasattr(app, "task"):
        raise ConfigurationError(
            f"@reliable_task was given {app!r:.100} where its app belongs: write @reliable_task(app), or "
            "@reliable_task() for a shared task"
        )
    base = options.setdefault("base", ReliableTask)
    if not (isinstance(base, type) and issubclass(base, ReliableTask)):
        raise ConfigurationError(f"base={base!r:.100} is not a subclass of ReliableTask")
    return shared_task(**options) if app is None else app.task(**options)
