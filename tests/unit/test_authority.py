"""What an operator's seal proves, and to whom."""

from __future__ import annotations

import gc
import weakref
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery import Settings, broker_for, redrives
from gwi_celery.authority import SIGNATURE, Authority, find
from gwi_celery.integration import integration, settings_for
from gwi_celery.signing import MESSAGE, keys_of
from gwi_celery.stores.sqlite import SqliteStore
from tests.apps import fresh_app

KEYS = {"k1": "s" * 32}


def authority(**settings: Any) -> Authority:
    """Of an app with a store of its own."""
    store = SqliteStore(None)
    return Authority(
        Settings(store_url=f"embedded://:memory:/{uuid4().hex}", **settings), lambda: store
    )


@pytest.mark.parametrize("settings", [{}, {"signing_keys": KEYS}], ids=["store's key", "own keys"])
def test_a_seal_proves_what_it_was_made_for_and_nothing_else(settings: Any) -> None:
    ours = authority(**settings)
    seal = ours.seal("cancel", "j1")
    assert ours.is_sealed(seal, "cancel", "j1")
    for wrong, what in ((seal, "j2"), (seal + "x", "j1"), ("k2" + seal[2:], "j1"), (None, "j1")):
        assert not ours.is_sealed(wrong, "cancel", what)
    other = {"signing_keys": {"k1": "t" * 32}} if settings else {}
    assert not authority(**other).is_sealed(seal, "cancel", "j1"), "another app's"
    signed = ours.sign(b'["cancel", "j1"]', "celery")
    assert signed is None or not ours.is_sealed(signed, "cancel", "j1"), "a message's signature"
    mark, by = redrives.parts(ours.redrive_mark("death"))
    assert ours.is_redrive_mark(redrives.sealed(mark, by))
    assert not ours.is_redrive_mark(redrives.sealed(f"{mark}.start", by)), "from another step"


def test_apps_whose_keys_differ_share_no_authority() -> None:
    """By their secrets, or by which of them signs."""
    url, one, two = f"embedded://:memory:/{uuid4().hex}", "s" * 32, "t" * 32
    made = [
        fresh_app(broker_url=url, store_url=url, signing_keys=keys)
        for keys in ({"k": one}, {"k": two}, {"k": one, "l": two}, {"l": two, "k": one})
    ]
    ids = [integration(app).authority.id for app in made]
    assert len(set(ids)) == len(made)
    assert not any(secret in id for secret in (one, two) for id in ids)
    first, second, third, fourth = made
    assert not integration(third).authority.same(settings_for(fourth))
    for app, signs in ((first, "k"), (second, "k"), (third, "l"), (fourth, "k")):
        app.send_task("some.task")
        [message] = broker_for(app).peek("celery", 10)
        signature = message.attributes[SIGNATURE]
        assert signature.startswith(f"{signs}:")
        secret = settings_for(app).signing_keys[signs]
        assert keys_of({signs: secret}).verify(MESSAGE, message.data, signature), "its own secret"
        broker_for(app).purge("celery")


def test_an_app_stays_able_to_send_after_another_with_its_store_has_ended() -> None:
    url = f"embedded://:memory:/{uuid4().hex}"
    ours = fresh_app(broker_url=url, store_url=url)
    other = fresh_app(broker_url=url, store_url=url, keep_calls=False)
    theirs = integration(other).authority
    assert theirs.id == integration(ours).authority.id
    assert find(theirs.id) is theirs, "the latest"
    gone = weakref.ref(theirs)
    other.close()
    del other, theirs
    gc.collect()  # the app
    gc.collect()  # and what was kept for it
    assert gone() is None
    ours.send_task("some.task")
    assert broker_for(ours).size("celery").ready == 1
