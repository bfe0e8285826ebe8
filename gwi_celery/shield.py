"""Holds back exceptions from outside while library code runs.

A soft time limit, a revoke with terminate, a shutdown or a greenlet's kill may be raised between any
two instructions: after a commit and before anyone knows of it, or inside gRPC, whose own lock then
stays held. So sections of library code hold them back and raise them at their end; windows
in such a section are user code, where they are raised at once::

    with shield.section():
        claim()
        with shield.window():   # held exceptions are raised here, new ones at once
            users_code()
        finish()

They arrive in two ways, and both are covered. CPython runs a signal's Python handler in the main thread,
whichever thread got the signal: so the handlers are wrapped (:func:`arm`), whoever installed them, and
the main thread's section decides. A greenlet is killed by its ``throw``, where it is suspended: within
:func:`watched` that is wrapped as well. Other threads get no exceptions from outside.

Only worker processes are armed: in a program that just calls tasks, signals stay as they are.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals

P = ParamSpec("P")
T = TypeVar("T")

#: Signals whose handlers may raise: Celery's, billiard's, and those that a job is likely to use itself.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGTERM",
        "SIGUSR1",
        "SIGUSR2",
        "SIGALRM",
        "SIGXCPU",
        "SIGVTALRM",
        "SIGPROF",
    )
    if hasattr(signal, name)
)


class _State:
    """The state of a thread, or of a greenlet where gevent has patched ``threading.local``."""

    __slots__ = ("closed", "idle", "noted")

    def __init__(self) -> None:
        #: Within a section, and in no window of it.
        self.closed = False
        #: Between two tasks of a pool process: an exception that was to end a job came too late for it.
        self.idle = False
        #: What was held back, in order; a call raises the exception, or runs the handler.
        self.noted: list[Callable[[], Any]] = []


#: Signals that ask a worker to stop.
_STOPS = {getattr(signal, name, None) for name in ("SIGTERM", "SIGINT", "SIGQUIT")}

_local = threading.local()
_armed = False
_stop_listeners: list[weakref.WeakMethod[Callable[[], None]]] = []


def _mine() -> _State:
    try:
        state: _State = _local.state
    except AttributeError:
        state = _local.state = _State()
    return state


# --- sections and windows -------------------------------------------------------------------------


class section:
    """Exceptions from outside are held back, and raised at the end. May be nested."""

    __slots__ = ("_was",)

    def __enter__(self) -> None:
        state = _mine()
        self._was = state.closed
        state.closed = True
        if _armed and not self._was:
            _wrap_handlers()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        state = _mine()
        state.closed = self._was
        if state.noted and not self._was:
            _raise_noted(state)


class window:
    """User code within a section: held exceptions are raised here, new ones at once."""

    __slots__ = ("_was",)

    def __enter__(self) -> None:
        state = _mine()
        self._was = state.closed
        state.closed = False
        if state.noted:
            try:
                _raise_noted(state)
            except BaseException:
                state.closed = self._was
                raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _mine().closed = self._was


def shielded(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose body is a section."""

    @functools.wraps(function)
    def in_section(*args: P.args, **kwargs: P.kwargs) -> T:
        with section():
            return function(*args, **kwargs)

    return in_section


@contextmanager
def watched() -> Iterator[None]:
    """Around a pool's handling of any message: marks exceptions from outside as such."""
    arm()
    restore = _wrap_throw(_mine())
    try:
        yield
    finally:
        restore()


@contextmanager
def task() -> Iterator[None]:
    """Around all that a pool does for a reliable job's message; the job's own code is a window.

    An exception that would have ended the job but came too late is dropped: the outcome is written. A
    signal that ends the process takes effect at the end.
    """
    with section(), watched():
        state = _mine()
        state.idle = False
        try:
            yield
        finally:
            state.idle = True


def ends_greenlet(exc: BaseException) -> bool:
    """Whether the exception is a greenlet's kill."""
    greenlet = sys.modules.get("greenlet")
    return greenlet is not None and isinstance(exc, greenlet.GreenletExit)


def is_time_limit(exc: BaseException) -> bool:
    """Whether the exception ends a greenlet at its hard time limit."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(exc, gevent.Timeout) and from_outside(exc)


def from_outside(exc: BaseException) -> bool:
    """Whether a signal's handler or a kill raised it, and not the code that it passed through."""
    return bool(getattr(exc, "_gwi_from_outside", False))


def _raise_noted(state: _State) -> None:
    while state.noted:
        state.noted.pop(0)()


def _mark(exc: BaseException) -> None:
    exc._gwi_from_outside = True  # type: ignore[attr-defined]


# --- signals --------------------------------------------------------------------------------------


class _Handler:
    """Wraps a signal's handler."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        state = _mine()
        if state.closed:
            if signum in _STOPS:
                for reference in _stop_listeners:
                    if (listener := reference()) is not None:
                        listener()
            state.noted.append(lambda: self._run(state, signum, None))
        else:
            self._run(state, signum, frame)

    def _run(self, state: _State, signum: int, frame: FrameType | None) -> None:
        try:
            self._handler(signum, frame)
        except BaseException as exc:
            if state.idle and isinstance(exc, SoftTimeLimitExceeded):
                return
            _mark(exc)
            raise


def arm() -> None:
    """Have this process's sections hold back what its signal handlers raise, from now on."""
    global _armed  # noqa: PLW0603 of the process, as its handlers are
    _armed = True
    _wrap_handlers()


def on_held_stop(listener: Callable[[], None]) -> None:
    """Call this method at once when a stop's handler is held back, which may be for a whole call's time.

    It runs amid library code: it may start a system thread, and little else. The reference to it is
    weak, and a fork has no listeners.
    """
    _stop_listeners[:] = [ref for ref in _stop_listeners if ref() is not None]
    _stop_listeners.append(weakref.WeakMethod(listener))


def _wrap_handlers() -> None:
    """Wrap the current handlers: Celery's and billiard's are installed at various times."""
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and type(handler) not in (_Handler, signal.Handlers):
            try:
                signal.signal(number, _Handler(handler))
            except ValueError:
                return  # not the main thread, where handlers run


def _begins(**_: Any) -> None:
    """A task begins, of any kind."""
    _mine().idle = False


signals.task_prerun.connect(_begins, weak=False)


def _after_fork() -> None:
    """A child begins outside of any section, wherever its parent was."""
    state = _mine()
    state.closed = state.idle = False
    state.noted = []
    _stop_listeners.clear()


os.register_at_fork(after_in_child=_after_fork)


# --- greenlets ------------------------------------------------------------------------------------


def _wrap_throw(state: _State) -> Callable[[], None]:
    """Hold back what is thrown into this greenlet. Returns what undoes that."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return _nothing
    from gevent import GreenletExit
    from greenlet import getcurrent

    _tell_timeouts_apart()
    current = getcurrent()
    throw, before = current.throw, vars(current).get("throw")

    def hold_back(kind: Any = GreenletExit, *details: Any) -> Any:
        exc = kind(*details[:1]) if isinstance(kind, type) else kind
        _mark(exc)
        if state.closed:
            state.noted.append(lambda: _raise(state, exc))
            return None
        return throw(exc)

    def undo() -> None:
        if before is None:
            del current.throw
        else:
            current.throw = before

    current.throw = hold_back
    return undo


def _tell_timeouts_apart() -> None:
    """Let timeouts of library code's own waits expire at once; all others are held back in sections."""
    from gevent import Timeout

    if hasattr(Timeout, "_gwi_within"):
        return
    start, expire = Timeout.start, Timeout._on_expiration

    def start_noting(self: Any) -> None:
        self._gwi_within = _mine().closed
        start(self)

    def expire_at_once(self: Any, waiting: Any, exc: Any) -> None:
        if self._gwi_within:
            type(waiting).throw(waiting, exc)
        else:
            expire(self, waiting, exc)

    Timeout._gwi_within = False
    Timeout.start, Timeout._on_expiration = start_noting, expire_at_once


def _raise(state: _State, exc: BaseException) -> None:
    if not state.idle:
        raise exc


def _nothing() -> None:
    """Nothing was wrapped."""
