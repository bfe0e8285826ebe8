"""What operators have set for limits: one document, which each process reads again every few seconds.

It also remembers how many places a limit had before, as jobs may hold places beyond the new number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.stores.firestore.paths import DAY, Paths
from gwi_celery.stores.firestore.tries import Tries
from gwi_celery.stores.limits import LimitRef, LimitSetting, limit_id

#: Seconds until an operator's change holds in every process.
KEPT: Final = 10.0
#: How long a limit's former number is remembered: longer than any job runs, microseconds.
REMEMBERED: Final = 60 * DAY
#: Where the former numbers are, among the settings by their ids.
_FORMER: Final = "former"


class Change(NamedTuple):
    """The last change of a setting."""

    #: The most places that the limit had before it.
    places: int
    #: The server's approximate time of it, microseconds.
    at: int


@dataclass(frozen=True)
class _Stored:
    """The document."""

    settings: Mapping[str, LimitSetting] = field(default_factory=dict)
    #: The last change of each setting, of those that were cleared too.
    changes: Mapping[str, Change] = field(default_factory=dict)
    version: int | None = None


class Settings:
    """One store's settings of limits, in this process."""

    def __init__(self, paths: Paths) -> None:
        self._name = paths.limit_settings
        self._stored = _Stored()
        self._until = 0.0

    def recent(self, client: Client) -> Mapping[str, LimitSetting]:
        """The settings as they were at most 10 seconds ago."""
        if self._until <= time.monotonic():
            self._stored = self._read(client)
            self._until = time.monotonic() + KEPT
        return self._stored.settings

    def read(self, client: Client) -> dict[str, LimitSetting]:
        """The settings as they are now."""
        return dict(self._read(client).settings)

    def last_change(self, limit: LimitRef) -> Change:
        """The last change of a limit that is in force by what :meth:`recent` has read.

        Its ``places`` are the most that the limit may have had before; ``at`` is 0 if there was none.
        """
        stored = self._stored
        if not stored.changes:
            return Change(0, 0)
        most, at = limit.before, 0
        for id in {limit.id, limit_id(limit.kind, limit.name, {})}:
            change, setting = stored.changes.get(id), stored.settings.get(id)
            if change is not None:
                most, at = max(most, change.places), max(at, change.at)
            if setting is not None:  # a limit's own setting may have replaced that for all values
                most = max(most, setting.places)
        return Change(most, at)

    def change(self, client: Client, id: str, setting: LimitSetting | None) -> bool:
        """Change the setting, or with None delete it. Returns whether there was one."""
        tries = Tries("change a limit")
        existed = False
        for _ in tries:
            stored = self._read(client)
            existed = existed or id in stored.settings
            former = stored.settings.get(id)
            if former == setting:  # perhaps by a try whose answer was lost
                self._until = 0.0
                return existed
            settings = {**stored.settings, id: setting}
            data = {each: kept.dumps() for each, kept in settings.items() if kept is not None}
            now = client.about_now()
            changes = {
                each: change
                for each, change in stored.changes.items()
                if change.at + REMEMBERED > now
            }
            numbers = [changes[id].places] if id in changes else []
            numbers += [] if former is None else [former.places, former.before]
            numbers += [] if setting is None else [setting.before]
            changes[id] = Change(max(numbers, default=0), now)
            data[_FORMER] = json.dumps(changes)
            with tries.once():
                client.commit([documents.replace(self._name, {"data": data}, stored.version)])
                self._until = 0.0
                return existed
        raise AssertionError

    def _read(self, client: Client) -> _Stored:
        document = client.read([self._name]).documents.get(self._name)
        if document is None:
            return _Stored()
        data: dict[str, Any] = dict(document.fields["data"])
        changes = json.loads(data.pop(_FORMER, "{}"))
        return _Stored(
            {id: LimitSetting.loads(text) for id, text in data.items()},
            {id: Change(*change) for id, change in changes.items()},
            document.update_time,
        )
