"""A job's exceptions on their way to whoever asks for its result: they always arrive.

A user's exception may have a text that raises, arguments without a JSON form, a constructor that its own
arguments don't satisfy, or megabytes of text. Stored, it is a form that Celery's JSON results have, with
``exc_text`` where class and arguments alone don't reproduce its text. The worker's main process only
ever sees a stand-in, so that no code of a job runs there.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry
from kombu.utils import json

from gwi_celery.errors import JobFailed
from gwi_celery.text import cut, safe_repr, safe_text

#: Longest text of an error and of one of its arguments, bytes of UTF-8. A longer one is cut, and says so.
MAX_TEXT: Final = 20_000
#: Largest arguments of an error, bytes of JSON. Larger ones are replaced by its text.
_MAX_ARGS: Final = 500_000
#: Longest traceback, bytes of UTF-8.
_MAX_TRACEBACK: Final = 100_000


#: Exceptions that end a pool's process, thread or greenlet rather than the job.
ENDS_THE_WORKER: tuple[type[BaseException], ...] = (SystemExit, KeyboardInterrupt)
try:
    from greenlet import GreenletExit
except ImportError:
    pass
else:
    ENDS_THE_WORKER = (*ENDS_THE_WORKER, GreenletExit)


class Raised(Exception):
    """Stands in for an exception, with its class's name and its text. Can always be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self.args[0]!r})"

    def __reduce__(self) -> Any:
        return _raised, (type(self).__qualname__, type(self).__module__, self.args[0])


@lru_cache(maxsize=256)
def _stand_in_class(name: str, module: str) -> type[Raised]:
    return type(name.rpartition(".")[2], (Raised,), {"__module__": module, "__qualname__": name})


def _raised(name: str, module: str, text: str) -> Raised:
    return _stand_in_class(name, module)(text)


def stand_in(exc: BaseException) -> Raised:
    """A stand-in that describes ``exc``."""
    if isinstance(exc, Raised):
        return exc
    return _raised(*_name(exc), safe_text(exc, MAX_TEXT))


def presentable(exc: BaseException) -> BaseException:
    """``exc``, or a stand-in if its text is huge, or if reading its text or arguments raises."""
    text = _text(exc)
    if text is None or _arguments(exc) is None or len(text) > MAX_TEXT // 2:
        return stand_in(exc)
    return exc


# --- stored -----------------------------------------------------------------------------------------


def form(exc: BaseException) -> dict[str, Any]:
    """An exception in the form of Celery's JSON results. Never raises."""
    text = safe_text(exc, MAX_TEXT)
    name, module = _name(exc)
    arguments = _arguments(exc)
    if isinstance(exc, Raised) or arguments is None:
        arguments = (text,)
    made = {"exc_type": name, "exc_message": _storable(arguments, text), "exc_module": module}
    if isinstance(exc, Raised) or not _reproduces(exc, made["exc_message"], text):
        made["exc_text"] = text
    return made


def rebuild(form: Any, make: Callable[[Any], Any]) -> Any:
    """The exception of a form, made by ``make`` (Celery's own), with the text it had.

    If the class can't be made from its arguments, a JobFailed with the class's name and the text.
    """
    exc = make(form)
    text = form.get("exc_text") if isinstance(form, dict) else None
    if text is None or _text(exc) == text:
        return exc
    name = str(form.get("exc_type"))
    if type(exc).__name__ == name.rpartition(".")[2]:
        made = _with_text(type(exc), tuple(form.get("exc_message") or ()), text)
        if made is not None:
            return made
    return JobFailed(f"{name}: {text}")


def _with_text(cls: type[BaseException], arguments: tuple[Any, ...], text: str) -> Any:
    """An exception of the class whose text is ``text``; None if there can't be one."""
    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__str__": lambda self: text,
        "__repr__": lambda self: f"{cls.__name__}({text!r})",
        "__reduce__": lambda self: (_with_text, (cls, arguments, text)),
    }
    try:
        return type(cls.__name__, (cls,), members)(*arguments)
    except BaseException:  # a user's class may raise anything
        return None


def _reproduces(exc: BaseException, arguments: Any, text: str) -> bool:
    """Whether the exception's class makes the text from the arguments."""
    try:
        made = type(exc)(*json.loads(json.dumps(arguments)))
        return type(made) is type(exc) and _text(made) == text
    except BaseException:  # as above
        return False


def _storable(arguments: tuple[Any, ...], text: str) -> list[Any]:
    """The arguments, or the ``repr`` of one without a JSON form; only the text if they are huge."""
    stored, size = [], 0
    for argument in arguments:
        try:
            encoded = json.dumps(argument)
            json.loads(encoded)
            size += len(encoded)
            stored.append(argument)
        except BaseException:  # its __json__ or __reduce__ may do anything
            stored.append(safe_repr(argument, MAX_TEXT))
    return [text] if size > _MAX_ARGS else stored


# --- told to the worker's main process --------------------------------------------------------------


def rejected(reason: Any, requeue: bool) -> ExceptionInfo:
    """What the pool's caller gets for a message that is to be redelivered or dead-lettered."""
    try:
        raise Reject(_plain(reason), requeue=requeue)
    except Reject:
        return for_parent(ExceptionInfo(internal=True))


def for_parent(info: ExceptionInfo) -> ExceptionInfo:
    """``info`` itself, with its exception replaced by one that holds only texts."""
    exc = info.exception
    if isinstance(exc, ExceptionWithTraceback):
        exc = exc.exc
    if isinstance(exc, Reject):
        info.exception = Reject(_plain(exc.reason), requeue=bool(exc.requeue))
    elif isinstance(exc, Ignore):
        info.exception = Ignore(safe_text(exc))
    elif isinstance(exc, Retry):
        cause = None if exc.exc is None else stand_in(exc.exc)
        info.exception = Retry(safe_text(exc.message or ""), cause, exc.when)
    else:
        info.exception = stand_in(exc)
    info.type, info.tb = Exception, None
    info.traceback = cut(info.traceback, _MAX_TRACEBACK)
    return info


def _plain(reason: Any) -> Any:
    if reason is None or type(reason) is str:
        return reason
    return stand_in(reason) if isinstance(reason, BaseException) else safe_text(reason)


def traceback_text(exc: BaseException) -> str:
    """The traceback, as far as it can be formatted."""
    try:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except BaseException:  # a group nested deeper than Python's stack, say
        frames = "".join(traceback.format_tb(exc.__traceback__))
        text = f"{frames}{type(exc).__qualname__}: {safe_text(exc, MAX_TEXT)}\n"
    return cut(text, _MAX_TRACEBACK)


# --- what an exception says of itself ---------------------------------------------------------------


def _name(exc: BaseException) -> tuple[str, str]:
    cls = type(exc)
    return str(cls.__qualname__), str(cls.__module__)


def _text(exc: BaseException) -> str | None:
    """Its text, cut to what may be stored; None if its ``str`` or ``repr`` raises."""
    try:
        repr(exc)
        str(exc)
    except BaseException:  # whatever the user's own does
        return None
    return safe_text(exc, MAX_TEXT)


def _arguments(exc: BaseException) -> tuple[Any, ...] | None:
    try:
        return tuple(exc.args)
    except BaseException:  # as above
        return None
