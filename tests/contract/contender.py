"""A process that uses a shared store as its standard input says: ``python -m``, backend, place.

Each line is a command, and each answer is one line of JSON, written once the store has answered.
"""

from __future__ import annotations

import json
import os
import sys

from gwi_celery.stores.base import Claimed, ClaimRequest, Completed, Held, JobRef, LockRef, Store
from tests.contract.stores import SHARED, step, success

#: Seconds a contender holds what it claims, unless told otherwise.
LEASE_TTL = 60.0


def request(key: str, owner: str, lease_ttl: float = LEASE_TTL) -> ClaimRequest:
    return ClaimRequest(
        job=JobRef("acme", "contend", key),
        lock=LockRef("acme", (key,)),
        run_id=None,
        fingerprint="f",
        submission="s",
        owner=owner,
        nonce=f"{owner}/{key}/{os.urandom(8).hex()}",
        lease_ttl=lease_ttl,
        result_ttl=3600.0,
    )


def say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main(backend: str, place: str) -> None:
    store = SHARED[backend](place)
    owner = str(os.getpid())
    say(ready=owner)
    for line in sys.stdin:
        command, *words = line.split()
        COMMANDS[command](store, owner, *words)
    store.close()


def race(store: Store, owner: str, keys: str) -> None:
    """Claim every key, one after the other, and say which were won."""
    won: dict[str, int] = {}
    held = 0
    for key in keys.split(","):
        answer = store.claim(request(key, owner))
        if isinstance(answer, Claimed):
            won[key] = answer.lease.fence
        elif isinstance(answer, Held):
            held += 1
    say(won=won, held=held)


def hold(store: Store, owner: str, key: str, lease_ttl: str) -> None:
    """Claim a key and record steps until killed."""
    answer = store.claim(request(key, owner, float(lease_ttl)))
    assert isinstance(answer, Claimed), answer
    say(fence=answer.lease.fence)
    number = 0
    while True:
        store.save(answer.lease, step(f"step {number}", b"%d" % number))
        say(step=f"step {number}")
        number += 1


def churn(store: Store, owner: str) -> None:
    """Do job after job until killed."""
    number = 0
    while True:
        key = f"{owner}-{number}"
        answer = store.claim(request(key, owner))
        assert isinstance(answer, Claimed), answer
        store.save(answer.lease, step("only"))
        store.finish(answer.lease, success(key.encode()))
        say(key=key, fence=answer.lease.fence)
        number += 1


def fork(store: Store, owner: str) -> None:
    """Use one store object on both sides of a fork."""
    before = store.claim(request("before", owner))
    child = os.fork()
    if child == 0:
        answer = store.claim(request("in the child", owner))
        held = store.claim(request("before", owner))
        os._exit(0 if isinstance(answer, Claimed) and isinstance(held, Held) else 1)
    _, status = os.waitpid(child, 0)
    assert isinstance(before, Claimed)
    store.finish(before.lease, success())
    say(
        child=os.waitstatus_to_exitcode(status),
        parent=isinstance(store.claim(request("before", owner)), Completed),
        sees_the_childs=isinstance(store.claim(request("in the child", owner)), Held),
    )


COMMANDS = {"race": race, "hold": hold, "churn": churn, "fork": fork}


if __name__ == "__main__":
    main(*sys.argv[1:])
