"""What every store keeps of its operators: what they did, and the key that proves who is one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from gwi_celery.actions import acting_as, action
from gwi_celery.errors import InvalidCall
from gwi_celery.stores.base import JobRef
from tests.contract.stores import StoreCase


def test_what_operators_do_is_kept_with_it_latest_first(
    case: StoreCase, caplog: pytest.LogCaptureFixture
) -> None:
    store, job = case.store, case.request()
    lease = case.take(job).lease
    caplog.set_level(logging.INFO, "gwi_celery.audit")

    assert not store.force_release(job.lock, owner_nonce="another's")
    assert store.force_release(job.lock, owner_nonce=lease.nonce), "a worker's own doing"
    case.take(replace(job, nonce="n2"))
    with acting_as("ann@example.com"):
        assert store.force_release(job.lock)
        assert store.cancel(job.job, "not needed\nFORGED line")
    assert not store.cancel(job.job, "again"), "what changes nothing is no action"
    assert store.cancel(JobRef("\ud800", "review", "k"), "x" * 5000, in_advance=True)
    store.record_action(action("purge", "celery", messages=3))

    purge, advance, cancel, release = case.another().list_actions()
    assert [a.what for a in (purge, advance, cancel, release)] == [
        *("purge", "cancel", "cancel", "force release")
    ]
    assert (release.who, cancel.who) == ("ann@example.com", "ann@example.com")
    assert purge.who
    assert purge.where
    assert cancel.target == f"{job.job.task} {job.job.key}"
    assert cancel.details == {"reason": "not needed\nFORGED line"}
    assert (cancel.tenant, advance.tenant, purge.tenant) == ("acme", "\ud800", None)
    assert purge.details == {"messages": 3}
    assert store.list_actions(tenant="acme") == [cancel, release]
    assert store.list_actions(limit=1) == [purge]
    assert store.list_actions(limit=2, before=advance.id) == [cancel, release]
    for wrong in ({"before": "yesterday"}, {"before": ""}, {"before": "a/b"}, {"limit": 0}):
        with pytest.raises(InvalidCall):
            store.list_actions(**wrong)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert not any("\n" in line for line in lines)
    assert json.loads(lines[-1].partition("action ")[2])["what"] == "purge"


def test_all_who_open_a_store_have_one_key_in_common(case: StoreCase, tmp_path: Path) -> None:
    key = case.store.operator_key()
    assert len(key) == 32
    assert case.another().operator_key() == key
