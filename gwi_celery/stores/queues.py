"""What a store keeps of queues for a broker that can't be searched: dead letters, and pauses.

On Pub/Sub a message can't be looked at without leasing it. So whoever gives one up writes a record
beside it. That record is what lists show, and it is the truth: a message whose record has *ended* was
redriven or purged, and only its ack was lost; one without a record is recorded when somebody meets it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.ids import digest

#: Seconds for which a record outlasts its message, and for which one is kept that has ended: longer than
#: any broker keeps a message, so that a message that is there never lacks its record.
LEFT_OVER: Final = 35 * 86_400.0
_DAY: Final = 86_400.0


@dataclass(frozen=True)
class LetterFilter:
    """Which dead letters to find: those that fit all that isn't None."""

    queue: str | None = None
    reason: str | None = None
    task: str | None = None
    tenant: str | None = None
    #: The error's class, without its module.
    error: str | None = None
    task_id: str | None = None
    #: Seconds since the epoch: died at or after, and before.
    since: float | None = None
    before: float | None = None

    @property
    def id(self) -> str:
        """Names the list, so that a page token of another is noticed."""
        return digest("letters", json.dumps(dataclasses.astuple(self)))


@dataclass(frozen=True)
class LetterPage:
    """Letters without their messages' data and attributes."""

    letters: Sequence[DeadLetter]
    next_token: str | None


class QueueRecords(Protocol):
    """Records of dead letters, each by its ``id``, and of pauses. Raises as :class:`Store`."""

    def keep(self, letter: DeadLetter) -> None:
        """Record a dead letter, or record it anew; one write. It is forgotten once it has expired."""

    def end(self, ids: Collection[str]) -> None:
        """These were redriven or purged, recorded or not: no list shows them from now on."""

    def known(self, ids: Collection[str]) -> dict[str, bool]:
        """Id -> whether the letter has not ended, for those of the ids that are recorded."""

    def get(self, id: str) -> DeadLetter | None:
        """None if there is none, or if it has ended or expired."""

    def find(
        self, wanted: LetterFilter, *, limit: int = 100, token: str | None = None
    ) -> LetterPage:
        """Letters that fit, the latest death first, stable across pages; served by an index.

        Raises InvalidCall for a ``limit`` below 1 and a ``token`` of another list.
        """

    def count(self, wanted: LetterFilter) -> int:
        """How many fit."""

    def expiring(self, before: float, *, limit: int = 1000) -> list[DeadLetter]:
        """Those whose messages their broker drops before that time, the first of them first."""

    def set_paused(self, queue: str, paused: bool) -> None:
        """Pause or resume the queue. Workers ask for :meth:`paused` every few seconds."""

    def paused(self) -> frozenset[str]:
        """The queues that are paused; one read."""


def kept_until(letter: DeadLetter) -> float:
    """Seconds since the epoch until which the record is kept."""
    return (letter.expires_at or letter.died_at + LEFT_OVER) + _DAY
