"""``Limit``: how many jobs may run at once, or begin in a given time, across all workers."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gwi_celery.errors import ConfigurationError, InvalidCall
from gwi_celery.stores.limits import LimitRef, check_one, parse_rate
from gwi_celery.text import nearest, shown

#: Most characters of a limit's name, and of an argument that it is filled with.
_LONGEST: Final = 500

_FORMATTER: Final = string.Formatter()


@dataclass(frozen=True)
class Limit:
    """A limit that is shared by the jobs of every task that names it.

    A job that would exceed it waits like one whose lock is held: by a delayed copy, which counts as no
    attempt.

    Args:
        name: A text, in which ``{argument}`` stands for an argument of the call: each value has a limit
            of its own. Or a function of the arguments, as ``lock=`` takes, that returns the name.
        max_running: Jobs that may run at once.
        rate: Attempts that may begin in a time: ``"500/m"``, ``"10/s"``, ``"5/10s"``.

    Raises ConfigurationError for what can't be a limit.
    """

    name: str | Callable[[Mapping[str, Any]], str]
    max_running: int | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        check_one(f"Limit({self.name!r})", self.max_running, self.rate)
        name: Any = self.name
        if callable(name):
            return
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST:
            raise ConfigurationError(
                f"Limit({self.name!r}): give it a name of at most {_LONGEST} characters, such as "
                "'openai' or '{tenant_id}'"
            )
        self.arguments()

    def arguments(self) -> list[str]:
        """Names of the arguments that its name is filled with. Raises ConfigurationError."""
        if not isinstance(self.name, str):
            return []
        try:
            parts = [part for part in _FORMATTER.parse(self.name) if part[1] is not None]
        except ValueError as exc:
            raise ConfigurationError(f"Limit({self.name!r}): {exc}") from exc
        for _, argument, spec, conversion in parts:
            if not str(argument).isidentifier() or spec or conversion:
                raise ConfigurationError(
                    f"Limit({self.name!r}): put only an argument's name between braces, as in "
                    "'{tenant_id}'"
                )
        return [str(argument) for _, argument, _, _ in parts]

    @property
    def allows(self) -> str:
        """Its number, for people: ``max_running=3``."""
        return f"max_running={self.max_running}" if self.rate is None else f"rate={self.rate!r}"

    def contradicts(self, other: Limit) -> bool:
        """Whether the other is this limit with another number."""
        if self.name != other.name or (self.rate is None) != (other.rate is None):
            return False
        if self.rate is None or other.rate is None:
            return self.max_running != other.max_running
        return parse_rate(self.rate) != parse_rate(other.rate)

    def of(self, task: str, arguments: Mapping[str, Any]) -> LimitRef:
        """The limit of one call. Raises InvalidCall."""
        values: dict[str, str] = {}
        if isinstance(self.name, str):
            name = self.name
            for argument in self.arguments():
                what = f"{task}: the argument {argument}, which Limit({name!r}) needs,"
                if argument not in arguments:
                    raise InvalidCall(f"{what} is not in this call")
                values[argument] = _text(arguments[argument], what)
        else:
            try:
                name = self.name(arguments)
            except KeyError as exc:
                raise InvalidCall(
                    f"{task}: Limit(...) needs the argument {exc}, which this call doesn't have"
                ) from exc
            name = _text(name, f"{task}: what the function of a Limit gave")
        rate = None if self.rate is None else parse_rate(self.rate)
        return LimitRef(name, values, self.max_running, rate)


def _text(value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or len(value) > _LONGEST:
        raise InvalidCall(
            f"{what} is {shown(value)}: it must be a text of at most {_LONGEST} characters, or a whole "
            "number"
        )
    return value


def limits_of(
    task: str, limits: Sequence[Limit], function: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[LimitRef, ...]:
    """The limits of one call, its function's defaults included. Raises InvalidCall."""
    if not limits:
        return ()
    filled = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    } | dict(arguments)
    found = [limit.of(task, filled) for limit in limits]
    # Two functions may return the same name; one place is enough.
    by_id: dict[str, LimitRef] = {}
    for limit in found:
        if by_id.setdefault(limit.id, limit) != limit:
            raise InvalidCall(
                f"{task}: two of its limits have the name {limit.name!r} in this call, and different "
                "numbers: give them one number, or different names"
            )
    return tuple(by_id.values())


def check_limits(limits: object) -> tuple[Limit, ...]:
    """Raises ConfigurationError unless it is a list of limits without duplicates."""
    if not isinstance(limits, (list, tuple)) or not all(isinstance(each, Limit) for each in limits):
        raise ConfigurationError(
            f"Reliable(limits={limits!r}): use a list, such as [Limit('openai', rate='500/m')]"
        )
    named = [(each.name, each.rate is None) for each in limits]
    for twice in {each for each in named if named.count(each) > 1}:
        raise ConfigurationError(f"Reliable(limits=...): {twice[0]!r} is listed twice; keep one")
    return tuple(limits)


def check_arguments(
    task: str, limits: Sequence[Limit], function: Callable[..., Any], others: Sequence[str]
) -> None:
    """Raises ConfigurationError for a limit's name that no call of the task can fill.

    Args:
        others: Names that headers give.
    """
    if not limits:
        return
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    known = {*parameters, *others} - {"self"}
    for limit in limits:
        for argument in limit.arguments():
            if argument not in known:
                raise ConfigurationError(
                    f"{task}: Limit({limit.name!r}) names {argument!r}, which is not an argument of the "
                    f"task; {nearest(argument, known)}"
                )
