"""What a store keeps about queues for a broker that can't be searched: dead letters, and pauses.

On Pub/Sub a message can't be looked at without leasing it. So whoever dead-letters a message writes a
record of it as well. Lists show these records, and the records decide: a message whose record has
*ended* was redriven or purged, and only its ack was lost. A message without a record gets one when
it is next received.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.ids import digest

#: Seconds for which a record is kept that has ended, or whose message has no expiry: longer than any
#: broker keeps a message, so that no message outlives its record.
LEFT_OVER: Final = 35 * 86_400.0
_DAY: Final = 86_400.0


@dataclass(frozen=True)
class LetterFilter:
    """Which dead letters to find: those that match every field that isn't None."""

    queue: str | None = None
    reason: str | None = None
    task: str | None = None
    tenant: str | None = None
    #: The error's class, without its module.
    error: str | None = None
    task_id: str | None = None
    #: Seconds since the epoch: died at or after ``since``, and before ``before``.
    since: float | None = None
    before: float | None = None

    @property
    def id(self) -> str:
        """Names the list, so that a page token of another list is noticed."""
        return digest("letters", json.dumps(dataclasses.astuple(self)))


@dataclass(frozen=True)
class LetterPage:
    """Dead letters, without the data and attributes of their messages."""

    letters: Sequence[DeadLetter]
    next_token: str | None


class QueueRecords(Protocol):
    """Records of dead letters, each by its ``id``, and of pauses. Raises as :class:`Store`."""

    def keep(self, letter: DeadLetter) -> None:
        """Record a dead letter, or replace its record; one write. It is forgotten once it has expired."""

    def end(self, ids: Collection[str]) -> None:
        """Note that these were redriven or purged, recorded or not: no list shows them from now on."""

    def known(self, ids: Collection[str]) -> dict[str, bool]:
        """For each of the ids that is recorded: False if that letter has ended, else True."""

    def get(self, id: str) -> DeadLetter | None:
        """None if there is none, or if it has ended or expired."""

    def find(
        self, wanted: LetterFilter, *, limit: int = 100, token: str | None = None
    ) -> LetterPage:
        """Letters that match, the latest death first, stable across pages; served by an index.

        Raises InvalidCall for a ``limit`` below 1 and a ``token`` of another list.
        """

    def count(self, wanted: LetterFilter) -> int:
        """How many letters match. On Firestore expired ones count too until they are deleted."""

    def expiring(self, before: float, *, limit: int = 1000) -> list[DeadLetter]:
        """Up to ``limit`` letters whose messages the broker drops before that time, earliest first."""

    def set_paused(self, queue: str, paused: bool) -> None:
        """Pause or resume the queue. Workers ask for :meth:`paused` every few seconds."""

    def paused(self) -> frozenset[str]:
        """The queues that are paused; one read."""


def kept_until(letter: DeadLetter) -> float:
    """Seconds since the epoch until which the record is kept."""
    return (letter.expires_at or letter.died_at + LEFT_OVER) + _DAY


def listed_until(letter: DeadLetter) -> float:
    """Seconds since the epoch until which lists show the letter."""
    return kept_until(letter) if letter.expires_at is None else letter.expires_at
