"""The payload of a call: its arguments, and when two payloads are equal.

They are equal however they are written: by position or by name, with or without defaults, as tuples or
lists, 1 or 1.0. Signatures may change while records exist: a parameter passed by position may be
renamed, one passed by name may move, and one with a default may be added. So a payload has several
forms, and two payloads are equal if they have one form in common.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gwi_celery.ids import as_json, fingerprint

_SCALARS = (str, int, float, type(None))
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Payload:
    #: Name -> argument, as passed. Those of ``*args`` are named ``*0``, ``*1``, ...
    named: Mapping[str, Any]
    #: Name -> position, of the arguments that can be passed by position.
    places: Mapping[str, int]
    #: Names of the arguments that equal their default.
    left_out: frozenset[str]

    @classmethod
    def of(
        cls, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Payload:
        try:
            signature = inspect.signature(function)
            bound = signature.bind_partial(*args, **kwargs).arguments
        except (TypeError, ValueError):
            # Wrong arguments: Celery's own check, or the call itself, gives the better error.
            named = {**{f"*{i}": value for i, value in enumerate(args)}, **kwargs}
            return cls(named, {}, frozenset())
        named, places = {}, {}
        parameters = signature.parameters
        for place, (name, parameter) in enumerate(parameters.items()):
            if name not in bound:
                continue
            value = bound[name]
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                named.update({f"*{i}": item for i, item in enumerate(value)})
                places.update({f"*{i}": place + i for i in range(len(value))})
            else:
                named[name] = value
                if parameter.kind in _BY_PLACE:
                    places[name] = place
        left_out = {
            name
            for name, parameter in parameters.items()
            if name in named
            and parameter.default is not inspect.Parameter.empty
            and _equal(named[name], parameter.default)
        }
        return cls(named, places, frozenset(left_out))

    def key(self) -> str:
        """One digest, the same for all calls that are only written differently."""
        return fingerprint(as_json(self._by_place()))

    def fingerprint(self) -> str:
        """The digests of all forms; the last one is version 0.1's. Raises TypeError."""
        by_name = {name: v for name, v in self.named.items() if name not in self.left_out}
        digests = [fingerprint(as_json(by_name))]
        if self.places:
            digests.append(fingerprint(as_json(self._by_place())))
        digests.append(fingerprint(self.named))
        return " ".join(dict.fromkeys(digests))

    def _by_place(self) -> Any:
        named = dict(self.named)
        for name in self.left_out:
            del named[name]
        placed = [[place, named.pop(n)] for n, place in self.places.items() if n in named]
        return [placed, named] if placed else named


def _equal(value: Any, default: Any) -> bool:
    """Whether both have the same JSON: False doesn't equal 0, but () equals []."""
    if value is default:
        return True
    if isinstance(value, _SCALARS) != isinstance(default, _SCALARS):
        return False
    try:
        return fingerprint(as_json(value)) == fingerprint(as_json(default))
    except (TypeError, ValueError, RecursionError):
        return False
