"""Limits across workers, as data: how many places there are, and what operators have changed.

A limit is a number of places. A job that begins takes one in the commit of its claim:

- With ``max_running`` the place is held under the claim's lock, and that lock's lease is the place's as
  well. So whatever frees the lock frees the place, and a job that takes the place of an expired lease
  frees the lock of that lease.
- With a ``rate`` the place is taken for the rate's time, and then becomes free by itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from gwi_celery.errors import ConfigurationError
from gwi_celery.ids import digest

#: Most places of a rate. A larger rate is counted as fewer starts in a shorter time.
MOST_PLACES: Final = 10_000
#: The largest limit: jobs at once, or starts in a time.
_MOST: Final = 1_000_000
#: The longest time of a rate, seconds: the record of a place is kept as long.
_LONGEST: Final = 31 * 86_400.0

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_WORDS: Final = {"second": "s", "sec": "s", "minute": "m", "min": "m", "hour": "h", "day": "d"}
_RATE: Final = re.compile(r"\s*(\d{1,9})\s*(?:/|per)\s*(\d{0,9})\s*([a-z]+)\s*")


class Rate(NamedTuple):
    """At most ``amount`` starts in any window of ``seconds``."""

    amount: int
    seconds: float

    def __str__(self) -> str:
        for unit, seconds in reversed(_UNITS.items()):
            times = self.seconds / seconds
            if times >= 1 and times.is_integer():
                return f"{self.amount}/{'' if times == 1 else int(times)}{unit}"
        return f"{self.amount}/{self.seconds:g}s"


def parse_rate(text: object) -> Rate:
    """Read a rate: ``500/m``, ``10/s``, ``5/10s``, ``1000 per day``. Raises ConfigurationError."""
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is not None:
        amount, times, unit = int(found[1]), int(found[2] or 1), found[3]
        unit = _WORDS.get(unit.removesuffix("s") if len(unit) > 1 else unit, unit)
        seconds = times * _UNITS.get(unit, math.inf)
        if 1 <= amount <= _MOST and 1 <= seconds <= _LONGEST:
            return Rate(amount, seconds)
    raise ConfigurationError(
        f"the rate {text!r} can't be read: write 500/m, 10/s, 5/10s or 1000/d, from 1 to {_MOST:,} "
        f"in at most {_LONGEST / 86_400:.0f} days"
    )


def check_max_running(value: object) -> int:
    """The value. Raises ConfigurationError unless it is a whole number from 1 to 1,000,000."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST:
        return value
    raise ConfigurationError(
        f"max_running={value!r}: use a whole number from 1 to {_MOST:,}; to let none run, pause the queue"
    )


def check_one(what: str, max_running: object, rate: object) -> None:
    """Raises ConfigurationError unless exactly one of the two is given, and is valid."""
    if (max_running is None) == (rate is None):
        raise ConfigurationError(
            f"{what}: give either max_running= (jobs at once) or rate= (starts in a time), and for both "
            "two limits"
        )
    if rate is None:
        check_max_running(max_running)
    else:
        parse_rate(rate)


def limit_id(kind: str, name: str, values: Mapping[str, str]) -> str:
    """Differs for any two limits: "{tenant_id}" filled with "acme" is another limit than "acme"."""
    parts = [part for pair in sorted(values.items()) for part in pair]
    return digest("limit", kind, name, *parts)


@dataclass(frozen=True)
class LimitRef:
    """Names one limit, and says what it allows: jobs at once, or starts in a time."""

    #: As the code has it: ``"{tenant_id}"``.
    name: str
    #: The values that fill the name, by argument.
    values: Mapping[str, str]
    max_running: int | None = None
    rate: Rate | None = None
    #: Places that it had before an operator changed it: that many may still be taken.
    before: int = 0

    @property
    def kind(self) -> str:
        return "running" if self.rate is None else "rate"

    @property
    def id(self) -> str:
        return limit_id(self.kind, self.name, self.values)

    @property
    def text(self) -> str:
        """The name, filled with its values; for people."""
        return self.name.format(**self.values) if self.values else self.name

    @property
    def places(self) -> int:
        if self.rate is None:
            assert self.max_running is not None
            return self.max_running
        return self.rate.amount // self._parts

    @property
    def period(self) -> float | None:
        """Seconds for which a place is taken; None: as long as its job holds its lock."""
        return None if self.rate is None else self.rate.seconds / self._parts

    @property
    def _parts(self) -> int:
        assert self.rate is not None
        return -(-self.rate.amount // MOST_PLACES)

    def usage(self, held: int) -> str:
        """How much of it is taken, for people: ``3 of 3 held``."""
        if self.rate is None:
            return f"{held} of {self.max_running} held"
        return f"{self.rate} are used up"


# --- what operators change ------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitSetting:
    """What an operator has set in place of what the code says."""

    name: str
    #: The values for which it holds; empty: for all that have no setting of their own.
    values: Mapping[str, str]
    max_running: int | None
    rate: Rate | None
    #: When it was set, in seconds since the epoch, and by whom.
    at: float
    who: str
    #: The most places that the code gave it before.
    before: int = 0

    @property
    def id(self) -> str:
        return self._ref.id

    @property
    def places(self) -> int:
        return self._ref.places

    @property
    def _ref(self) -> LimitRef:
        return LimitRef(self.name, self.values, self.max_running, self.rate)

    def dumps(self) -> str:
        return json.dumps({**vars(self), "values": dict(self.values)})

    @classmethod
    def loads(cls, text: str) -> LimitSetting:
        fields = json.loads(text)
        rate = fields.pop("rate")
        return cls(rate=None if rate is None else Rate(*rate), **fields)


def in_force(limit: LimitRef, settings: Mapping[str, LimitSetting]) -> LimitRef:
    """The limit as it is now: as set for its own values, else for its name, else as in the code."""
    found = settings.get(limit.id) or settings.get(limit_id(limit.kind, limit.name, {}))
    if found is None:
        return limit
    before = max(found.before, limit.places)
    return replace(limit, max_running=found.max_running, rate=found.rate, before=before)
