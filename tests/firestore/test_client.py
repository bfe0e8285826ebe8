"""The Firestore client on the emulator, also on both sides of forks. Without a server: tests/unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict
from gwi_celery.firestore.documents import Filter, Query, create
from gwi_celery.firestore.url import parse
from tests import zygote


@pytest.mark.emulator
def test_commits_reads_and_queries(firestore_emulator: Any) -> None:
    client = Client(parse("firestore://client-test?database=other-db"))
    made = client.commit(
        [
            create(f"gwi/v1/things/{n}", {"n": n, "of": "x", "b": b"\xff"}, server_times=["at"])
            for n in range(3)
        ]
    )
    assert len(set(made.versions)) == 1, "one commit, one version: a lock's is its record's"
    assert made.versions[0] == made.commit_time
    with pytest.raises(Conflict):
        client.commit([create("gwi/v1/things/9", {}), create("gwi/v1/things/0", {})])

    read = client.read(["gwi/v1/things/0", "gwi/v1/things/9"])
    (document,) = read.documents.values()
    assert document.name == "gwi/v1/things/0"
    assert document.fields == {
        "n": 0,
        "of": "x",
        "b": b"\xff",
        "at": made.server_times[0][0],
    }
    assert document.update_time == made.versions[0] <= read.read_time

    checked = client.commit([documents.check("gwi/v1/things/0", made.versions[0])])
    assert checked.versions == made.versions[:1], "a check leaves the version as it was"
    changed = client.commit(
        [
            documents.change(
                "gwi/v1/things/0", {"n": 7}, made.versions[0], mask=["n", "b"], server_times=["at"]
            ),
            documents.delete("gwi/v1/things/1", made.versions[1]),
        ]
    )
    for stale in (
        documents.check("gwi/v1/things/0", made.versions[0]),
        documents.delete("gwi/v1/things/1", made.versions[1]),
        documents.change("gwi/v1/things/1", {}, made.versions[1], mask=["n"]),
    ):
        with pytest.raises(Conflict):
            client.commit([stale])

    query = Query("gwi/v1", "things", filters=[Filter("of", "==", "x")], order=[("n", "desc")])
    found = list(client.query(query).documents.values())
    assert [d.fields["n"] for d in found] == [7, 2]
    assert "b" not in found[0].fields
    assert found[0].update_time == changed.versions[0]
    after = Query(
        "gwi/v1",
        "things",
        filters=[Filter("of", "==", "x"), Filter("n", "<=", 100)],
        order=[("n", "desc")],
        after=[7, "gwi/v1/things/0"],
        limit=1,
        mask=["n"],
    )
    (second,) = client.query(after).documents.values()
    assert second.fields == {"n": 2}
    below = Query("gwi/v1", "things", descendants=True, mask=[])
    assert len(client.query(below).documents) == 2
    client.close()
    client.close()
    assert client.read(["gwi/v1/things/0"]).documents, "a closed client connects again"
    client.close()


FORKS = """
import os, threading
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Write
from gwi_celery.firestore.url import parse

client = Client(parse("firestore://fork-test"))
over = threading.Event()

def call():
    n = 0
    while not over.is_set():
        client.commit([Write(f"a/{threading.get_ident()}", {"n": n})])
        n += 1

threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads:
    thread.start()
codes = []
for n in range(30):
    pid = os.fork()
    if not pid:
        client.commit([Write(f"b/{n}", {})])
        os._exit(0 if client.read([f"b/{n}"]).documents else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over.set()
for thread in threads:
    thread.join()
assert client.read(["b/0"]).documents
print("children failed:", sum(map(bool, codes)))
"""


@pytest.mark.emulator
def test_a_busy_client_is_used_on_both_sides_of_forks(
    firestore_emulator: Any, tmp_path: Path
) -> None:
    done = zygote.run(FORKS, folder=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["children failed: 0"], done.stdout
