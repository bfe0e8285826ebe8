"""Limits across workers, for operators: what is in force, who holds places, and changes at run time.

::

    from gwi_celery import Limit, limits

    limits.find()                                             # each limit, and the jobs with a place
    limits.set("openai", rate="100/m")                        # in place of what the code says
    limits.set("{tenant_id}", max_running=10, of={"tenant_id": "acme"})
    limits.clear("openai")                                    # back to what the code says

What is set is kept in the store and holds for all workers: at once where that is SQLite, within 10
seconds on Firestore. Jobs that run already go on. Each function takes ``app=``, an app that was set up;
without it, Celery's current one. ``celery -A app gwi limits`` is this on a command line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery import current_app

from gwi_celery.actions import action
from gwi_celery.errors import ConfigurationError, InvalidCall, UnknownName
from gwi_celery.integration import integration, store_for, unwrapped
from gwi_celery.reliability.limits import Limit
from gwi_celery.reliability.options import limits_by_task
from gwi_celery.stores.base import JobRef, PlaceRecord
from gwi_celery.stores.limits import (
    LimitRef,
    LimitSetting,
    Rate,
    check_one,
    in_force,
    parse_rate,
)
from gwi_celery.text import nearest

__all__ = ["JobRef", "Limit", "LimitState", "PlaceRecord", "changed", "clear", "find", "set"]

#: Places that are read for a list, at most.
_MOST = 5000


@dataclass(frozen=True)
class LimitState:
    """One limit as it is now."""

    #: As the code has it, such as ``"{tenant_id}"``.
    name: str
    #: Values that fill in the name; empty: the limit of all values that have none of their own.
    of: Mapping[str, str]
    #: In force: jobs at once, or starts in a time such as ``500/m``.
    max_running: int | None
    rate: str | None
    #: Who set it ("" if the code did), and when, in seconds since the epoch.
    set_by: str
    set_at: float | None
    #: Tasks that have it.
    tasks: Sequence[str]
    #: Taken places, oldest first. A rate's may belong to jobs that have ended.
    held: Sequence[PlaceRecord] = field(default=())
    #: How many places are taken. For a rate that Redis counts: its starts that count now, as Redis knows
    #: no jobs; None if Redis doesn't answer, or for a name whose values are not known here.
    used: int | None = None


def find(*, app: Any = None) -> list[LimitState]:
    """All limits of the app's tasks and all that were set, each also for every value now in use.

    At most 5,000 places are read.
    """
    app = unwrapped(current_app if app is None else app)
    store = store_for(app)
    settings = store.limit_settings()
    tasks: dict[str, list[str]] = {}
    known: dict[str, LimitRef] = {}
    for task, limit in _limits_of(app):
        if isinstance(limit.name, str):
            ref = _ref(limit.name, {}, limit.max_running, limit.rate)
            known.setdefault(ref.id, ref)
            tasks.setdefault(ref.id, []).append(task)
    for setting in settings.values():
        ref = LimitRef(setting.name, setting.values, setting.max_running, setting.rate)
        known.setdefault(setting.id, ref)
    held: dict[str, list[PlaceRecord]] = {}
    for place in store.list_places(limit=_MOST):
        held.setdefault(place.limit_id, []).append(place)
        if place.limit_id not in known:
            known[place.limit_id] = _held_ref(place, known)
    rates = integration(app).rates
    found = []
    for id, ref in known.items():
        now = in_force(ref, settings)
        places = [place for place in held.get(id, ()) if _counts(place, now)]
        places.sort(key=lambda p: p.taken_at)
        state = _state(ref, settings, tasks, places)
        if rates is not None and ref.rate is not None:
            filled = sorted(ref.values) == sorted(Limit(ref.name, rate=state.rate).arguments())
            used = rates.used(now) if filled else None
            state = replace(state, used=used)
        found.append(state)
    return sorted(found, key=lambda state: (state.name, bool(state.rate), sorted(state.of.items())))


def set(
    name: str,
    *,
    max_running: int | None = None,
    rate: str | None = None,
    of: Mapping[str, str] | None = None,
    app: Any = None,
) -> None:
    """Replace what the code says of a limit, for all workers.

    Args:
        name: As the code has it: ``"openai"``, ``"{tenant_id}"``.
        max_running: For a limit of jobs at once.
        rate: For a limit of starts in a time.
        of: Only for these values in the name, such as ``{"tenant_id": "acme"}``.

    Raises UnknownName, an InvalidCall, for a limit that no task of the app has.
    """
    app = unwrapped(current_app if app is None else app)
    try:
        check_one(f"the limit {name!r}", max_running, rate)
    except ConfigurationError as exc:
        raise InvalidCall(str(exc)) from exc
    _check_known(app, name, rate is not None, of)
    store = store_for(app)
    parsed = None if rate is None else parse_rate(rate)
    done = action(
        "set limit", _target(name, of), (of or {}).get("tenant_id"), allows=rate or max_running
    )
    coded = [
        _ref(name, {}, limit.max_running, limit.rate).places
        for _, limit in _limits_of(app)
        if (limit.name == name or callable(limit.name)) and (limit.rate is None) == (rate is None)
    ]
    setting = LimitSetting(
        name, dict(of or {}), max_running, parsed, time.time(), done.who, max(coded, default=0)
    )
    store.record_action(done)
    store.set_limit(setting)


def changed(*, app: Any = None) -> list[LimitState]:
    """The limits that :func:`set` has replaced."""
    settings = store_for(unwrapped(current_app if app is None else app)).limit_settings()
    refs = [LimitRef(s.name, s.values, s.max_running, s.rate) for s in settings.values()]
    return [_state(ref, settings, {}, ()) for ref in refs]


def clear(name: str, *, of: Mapping[str, str] | None = None, app: Any = None) -> int:
    """Undo :func:`set`: what the code says applies again. Returns how many settings that undid."""
    app = unwrapped(current_app if app is None else app)
    store = store_for(app)
    wanted = [s for s in store.limit_settings().values() if (s.name, s.values) == (name, of or {})]
    if not wanted:
        return 0
    done = action("clear limit", _target(name, of), (of or {}).get("tenant_id"))
    store.record_action(done)
    return sum(store.clear_limit(setting.id) for setting in wanted)


def _target(name: str, of: Mapping[str, str] | None) -> str:
    return " ".join([name, *(f"{argument}={value}" for argument, value in (of or {}).items())])


def _limits_of(app: Any) -> list[tuple[str, Limit]]:
    """(task, limit) of all tasks of the app."""
    app.finalize()
    return sorted(limits_by_task(app.tasks), key=lambda found: found[0])


def _check_known(app: Any, name: str, is_rate: bool, of: Mapping[str, str] | None) -> None:
    limits = [limit for _, limit in _limits_of(app)]
    named = {limit.name: limit for limit in limits if (limit.rate is not None) == is_rate}
    if name not in named:
        if any(callable(limit.name) for limit in limits):
            return  # a function may return that name
        kind = "rate" if is_rate else "max_running"
        texts = [str(each) for each in named]
        raise UnknownName(
            f"no task of this app has Limit({name!r}, {kind}=...)"
            + (f"; {nearest(name, texts)}" if texts else "")
        )
    arguments = named[name].arguments()
    if of and sorted(of) != sorted(arguments):
        wants = " and ".join(arguments) or "nothing"
        raise InvalidCall(
            f"the limit {name!r} is filled with {wants}, and not with {', '.join(of)}"
        )


def _ref(
    name: str, values: Mapping[str, str], max_running: int | None, rate: str | None
) -> LimitRef:
    return LimitRef(name, values, max_running, None if rate is None else parse_rate(rate))


def _held_ref(place: PlaceRecord, known: Mapping[str, LimitRef]) -> LimitRef:
    """The limit of a place, as the code has it; of an unknown size if the code has none."""
    for ref in known.values():
        if ref.name == place.name and (ref.rate is not None) == place.of_rate and not ref.values:
            return replace(ref, values=place.values)
    unknown = Rate(1, max(place.free_at - place.taken_at, 1.0)) if place.of_rate else None
    return LimitRef(place.name, place.values, None if place.of_rate else 1, unknown)


def _counts(place: PlaceRecord, limit: LimitRef) -> bool:
    """Whether a place that is listed as taken counts: a rate's time may have been shortened since."""
    period = limit.period
    longer = period is not None and place.free_at - place.taken_at > period
    return not longer or place.taken_at + (period or 0.0) > time.time()


def _state(
    ref: LimitRef,
    settings: Mapping[str, LimitSetting],
    tasks: Mapping[str, Sequence[str]],
    held: Sequence[PlaceRecord],
) -> LimitState:
    of_all = replace(ref, values={})
    setting = settings.get(ref.id) or settings.get(of_all.id)
    now = in_force(ref, settings)
    return LimitState(
        name=ref.name,
        of=ref.values,
        max_running=now.max_running,
        rate=None if now.rate is None else str(now.rate),
        set_by="" if setting is None else setting.who,
        set_at=None if setting is None else setting.at,
        tasks=tasks.get(of_all.id, ()),
        held=held,
        used=len(held),
    )
