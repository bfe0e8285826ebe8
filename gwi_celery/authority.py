"""An app's authority: its signing keys, the proof that an operator acts, and a queue's rights."""

from __future__ import annotations

import itertools
import json
import logging
import weakref
from collections.abc import Callable, Collection
from typing import Any, Final

from gwi_celery import forks, redrives
from gwi_celery.actions import action
from gwi_celery.brokers.base import Delivery
from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError, InvalidCall, NotAllowed, StoreError
from gwi_celery.ids import digest
from gwi_celery.pauses import Pauses
from gwi_celery.rights import CELERY, Rights, rights_of
from gwi_celery.signing import MARK, MESSAGE, STORE, Keys, keys_of
from gwi_celery.stores.base import Store
from gwi_celery.stores.queues import QueueRecords

logger = logging.getLogger(__name__)

#: Message attribute that holds the signature of the message's data, byte for byte; see ``signing``.
SIGNATURE: Final = "gwi-signature"

#: Transport option that names the authority of an app's connections. An attribute would not do: Kombu
#: copies connections by their options, and shares those with the same URL and options.
AUTHORITY_OPTION: Final = "gwi_authority"


def find(id: str | None) -> Authority | None:
    """The authority with that id; None without one. Raises ConfigurationError for an unknown id."""
    if id is None:
        return None
    with _lock:
        same = [authority for authority in _made if authority.id == id]
    if not same:
        raise ConfigurationError(
            "the app's configuration was set up in another process, and not in this one: call "
            "gwi_celery.setup(app) in the module that makes the app"
        )
    return max(
        same, key=lambda authority: authority.number
    )  # the latest, if several apps are alike


class Authority:
    """One app's authority. Its operators are those who can use its store or have its signing keys.

    Args:
        settings: The app's.
        store: Opens the app's store; called when that is first needed.
    """

    def __init__(self, settings: Settings, store: Callable[[], Store]) -> None:
        self._settings = settings
        self.keys = keys_of(settings.signing_keys)
        self._store = store
        self._stores_key: Keys | None = None
        self._lock = forks.lock()
        #: Paused queues, where the broker can't pause one itself.
        self.pauses = Pauses(self._paused)
        #: The same in all processes of the app, and in no app whose settings differ in what is used here.
        self.id = _id(settings)
        with _lock:
            self.number = next(_numbers)
            _made.add(self)

    def same(self, settings: Settings) -> bool:
        """Whether those settings would make the same authority."""
        return _id(settings) == self.id

    @property
    def max_decoded_bytes(self) -> int:
        """Bytes of memory that a message may take; 0: a share of the machine's."""
        return self._settings.max_decoded_bytes

    def rights_of(self, queue: str) -> Rights:
        return rights_of(self._settings.queue_rights, queue)

    # --- messages -----------------------------------------------------------------------------

    def sign(self, data: bytes, queue: str) -> str | None:
        """The signature for a message that this app publishes to ``queue``; None if it needs none.

        Raises StoreError if only the store's key will do and it can't be read.
        """
        if self.keys:
            return self.keys.sign(MESSAGE, data)
        if CELERY not in self.rights_of(queue).formats:
            return self._of_the_store().sign(MESSAGE, data)  # a worker's copy of a plain job
        return None

    def admit(self, delivery: Delivery) -> bool:
        """Whether this app signed a message; nothing of the message is parsed for that.

        Raises NotAllowed if the message must be signed and is not, or if its signature is wrong, and
        StoreError if the store's key is needed and can't be read.
        """
        signature = delivery.attributes.get(SIGNATURE)
        by_store = signature is not None and signature.startswith(f"{STORE}:")
        if signature is not None and (self.keys or by_store):
            keys = self._of_the_store() if by_store else self.keys
            if keys.verify(MESSAGE, delivery.data, signature):
                return True
            known = by_store or signature.partition(":")[0] in self.keys
            raise NotAllowed(
                "its signature is wrong: its data was changed, or signed with another secret"
                if known
                else "its signature is by a key that gwi_signing_keys doesn't have: add that, or "
                "publish it anew"
            )
        required = self.rights_of(delivery.queue).signed
        if required or (required is None and self.keys):
            raise NotAllowed(
                "it is not signed, and gwi_signing_keys is set: publish it with an app that has the "
                f"keys, or allow it by gwi_queue_rights={{{delivery.queue!r}: {{'signed': False}}}}"
            )
        return False

    # --- operators ----------------------------------------------------------------------------

    def seal(self, *what: Any) -> str:
        """Proof that an operator asked for this. Raises StoreError."""
        return (self.keys or self._of_the_store()).sign(MARK, json.dumps(what).encode())

    def is_sealed(self, seal: Any, *what: Any) -> bool:
        """Whether ``seal`` is such a proof. Raises StoreError."""
        if not isinstance(seal, str):
            return False
        keys = self._of_the_store() if seal.startswith(f"{STORE}:") else self.keys
        return keys.verify(MARK, json.dumps(what).encode(), seal)

    def redrive_mark(self, death: str, from_step: str | None = "") -> str:
        """The mark that makes a dead message a new submission, sealed by an operator."""
        mark = redrives.mark(death, from_step)
        return redrives.sealed(mark, self.seal("redrive", mark))

    def is_redrive_mark(self, value: str) -> bool:
        mark, seal = redrives.parts(value)
        return self.is_sealed(seal, "redrive", mark)

    @property
    def records(self) -> QueueRecords | None:
        """The store's records of dead letters; None if it can't keep any. Raises StoreError."""
        try:
            return self._store().queues
        except InvalidCall:
            return None

    def died(self, letter: DeadLetter) -> None:
        """Record a dead letter. If that fails, only a search through its queue finds it."""
        try:
            records = self.records
            if records is not None:
                records.keep(letter)
        except StoreError as exc:
            logger.error(
                "dead letter %s of queue %r has no record yet (%s): `gwi dlq list --look` makes one",
                *(letter.id, letter.queue, exc),
            )

    def ended(self, ids: Collection[str]) -> None:
        records = self.records
        if records is not None and ids:
            records.end(ids)

    def _paused(self) -> frozenset[str]:
        records = self.records
        return frozenset() if records is None else records.paused()

    def about_to(self, what: str, queue: str) -> None:
        """Record in the audit trail what is about to be done to a queue. Raises StoreError."""
        self._store().record_action(action(what, queue))

    def _of_the_store(self) -> Keys:
        with self._lock:
            if self._stores_key is None:
                self._stores_key = Keys({STORE: self._store().operator_key()})
            return self._stores_key


def _id(settings: Settings) -> str:
    rights = sorted((queue, repr(own)) for queue, own in settings.queue_rights.items())
    keys = keys_of(settings.signing_keys).names
    parts = (settings.effective_store_url, *keys, repr(rights))
    return digest("authority", *parts, str(settings.max_decoded_bytes))


#: All that live. Not by their ids: apps with the same store and keys share one, and may end in any order.
_made: weakref.WeakSet[Authority] = weakref.WeakSet()
_numbers = itertools.count()
_lock = forks.lock()
