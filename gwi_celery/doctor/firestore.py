"""Does a real Firestore do what the store relies on? Takes a minute, and a few thousand operations.

It needs credentials with roles/datastore.user, and for the lists this package's indexes. It writes below
a root collection of its own, ``gwi-check-...``, and deletes that at the end.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from gwi_celery.doctor import deployed
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import GwiError, LeaseLost
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, ServerError, Unsettled
from gwi_celery.firestore.documents import Query, Write, create
from gwi_celery.firestore.url import parse
from gwi_celery.stores.base import (
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    JobStatus,
    LockRef,
    Outcome,
)
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.firestore.paths import JOBS, LOCKS, Paths
from gwi_celery.stores.firestore.records import job_of
from gwi_celery.stores.firestore.upkeep import Upkeep

THREADS = 8
#: What to change where something doesn't hold that the store relies on: there is no option for that.
_ELSEWHERE = "keep jobs elsewhere (store_url), and report this"
_INDEXES = "celery -A APP gwi init --print gcloud has the commands that make the indexes"


class Trial:
    """A trial of one database.

    Args:
        url: ``firestore://project?database=...``
        seconds: Of each of the two measurements under load.
        report: Called with each finding as soon as it is made.
    """

    def __init__(self, url: str, seconds: float, report: Callable[[Finding], object]) -> None:
        self.url = replace(parse(url), prefix=f"gwi-check-{os.urandom(6).hex()}")
        self.seconds = seconds
        self.codes: Counter[str] = Counter()
        database = self.url.database_of("check")
        self.client = Client(self.url, database=database, intercept=self.count)
        self.store = FirestoreStore(self.url, intercept=self.count)
        self._report = report

    def about(self) -> Iterator[Finding]:
        """Which database, and whether it is made as the store needs it."""
        where = f"{self.client.path} at {self.url.endpoint}, below {self.url.prefix}/"
        yield Finding("Firestore", None, "any project and database", where, twin="any")
        try:
            yield from deployed.firestore(replace(self.url, database=self.url.database_of("check")))
        except GwiError as exc:
            yield _ended_early(exc)

    def run(self) -> None:
        """Make all checks, then delete what they wrote."""
        try:
            for check in (
                self.versions,
                self.preconditions,
                self.request_time,
                self.jobs,
                self.lists,
                self.latency,
                self.contention,
            ):
                check()
        except GwiError as exc:
            self._report(_ended_early(exc))
        finally:
            self.delete()

    def count(self, method: str, request: Any, call: Callable[[Any], Any]) -> Any:
        try:
            answer = call(request)
        except ServerError as exc:
            self.codes[exc.code.name] += 1
            raise
        self.codes["OK"] += 1
        return answer

    def say(self, holds: bool, what: str, found: str = "", change: str = _ELSEWHERE) -> None:
        found = found or ("it is so" if holds else "it is not so")
        self._report(
            Finding(what, holds, "it is so", found, "" if holds else change, twin="it is so")
        )

    def measured(self, what: str, expected: str, found: str) -> None:
        self._report(Finding(what, None, expected, found, twin="its emulator's"))

    def name(self, name: str) -> str:
        return f"{self.url.prefix}/v1/things/{name}"

    # --- what the protocol relies on ----------------------------------------------------------

    def versions(self) -> None:
        tokens = []
        one_version = True
        for _ in range(40):
            written = self.client.commit([create(self.name("a"), {}), create(self.name("b"), {})])
            one_version &= set(written.versions) == {written.commit_time}
            tokens.append(written.versions[0])
            self.client.commit(
                [documents.delete(self.name(n), written.commit_time) for n in ("a", "b")]
            )
        grows = all(one < other for one, other in pairwise(tokens))
        self.say(grows, "tokens grow although the document is deleted and made again")
        self.say(one_version, "one commit gives all its documents one version, the commit's time")

    def preconditions(self) -> None:
        first = self.client.commit([create(self.name("c"), {"n": 1})]).versions[0]
        same = self.client.commit([documents.check(self.name("c"), first)]).versions[0]
        self.say(same == first, "a write that changes nothing leaves the version as it was")
        second = self.client.commit(
            [documents.change(self.name("c"), {"n": 2}, first, mask=["n"])]
        ).versions[0]
        refused: list[tuple[str, list[Write]]] = [
            ("creating what is there", [create(self.name("c"), {})]),
            ("a check of an older version", [documents.check(self.name("c"), first)]),
            ("deleting an older version", [documents.delete(self.name("c"), first)]),
            ("deleting what is gone", [documents.delete(self.name("gone"), first)]),
            (
                "all of a commit, for one write",
                [create(self.name("d"), {}), documents.check(self.name("c"), first)],
            ),
        ]
        for what, writes in refused:
            try:
                self.client.commit(writes)
            except Conflict:
                self.say(True, f"refused: {what}")
            else:
                self.say(False, f"refused: {what}", "it was accepted")
        read = self.client.read([self.name("c"), self.name("d")])
        found = read.documents.get(self.name("c"))
        self.say(
            list(read.documents) == [self.name("c")]
            and found is not None
            and found.update_time == second <= read.read_time,
            "a read sees the last commit, at a time that is not before it",
        )

    def request_time(self) -> None:
        written = self.client.commit([create(self.name("e"), {}, server_times=["at"])])
        late = (written.commit_time - written.server_times[0][0]) / 1000
        self.say(abs(late) < 60_000, "REQUEST_TIME is near the commit's", f"{late:.1f} ms earlier")

    # --- the store ----------------------------------------------------------------------------

    def request(self, key: str, lock: str, ttl: float = 30.0) -> ClaimRequest:
        return ClaimRequest(
            job=JobRef("check", "task", key),
            lock=LockRef("check", (lock,)),
            run_id="run",
            fingerprint="f",
            submission=os.urandom(4).hex(),
            owner="check",
            nonce=os.urandom(8).hex(),
            lease_ttl=ttl,
            result_ttl=600.0,
        )

    def jobs(self) -> None:
        taken = self.store.claim(self.request("job", "job", ttl=1.0))
        assert isinstance(taken, Claimed)
        lease = self.store.save(taken.lease, Checkpoint("s", CheckpointKind.STEP, b"x" * 2_000_000))
        self.say(
            isinstance(self.store.claim(self.request("job", "job")), Held),
            "a job that runs is held, until its lease runs out by the server's clock",
        )
        time.sleep(1.2)
        over = self.store.claim(self.request("job", "job"))
        self.say(isinstance(over, Claimed) and over.lease.fence > lease.fence, "then taken over")
        try:
            self.store.finish(lease, Outcome(JobStatus.SUCCEEDED, b"late"))
        except LeaseLost:
            self.say(True, "the former holder's finish is refused")
        else:
            self.say(False, "the former holder's finish is refused", "it was accepted")
        if isinstance(over, Claimed):
            (outline,) = self.store.load(over.lease)
            whole = self.store.fetch(over.lease, outline.name)
            self.say(
                whole is not None and whole.blob == b"x" * 2_000_000,
                "a step of 2 MB comes back whole",
            )
            self.store.finish(over.lease, Outcome(JobStatus.SUCCEEDED, b"done"))
            again = self.store.claim(self.request("job", "job"))
            self.say(isinstance(again, Completed), "a duplicate is answered from the record")

    def lists(self) -> None:
        queries: dict[str, Callable[[], object]] = {
            "by tenant": lambda: self.store.list_jobs("check"),
            "by status": lambda: self.store.list_jobs("check", status=JobStatus.SUCCEEDED),
            "by run": lambda: self.store.list_jobs("check", run_id="run"),
            "by status and run": lambda: self.store.list_jobs(
                "check", status=JobStatus.SUCCEEDED, run_id="run"
            ),
            "of locks": lambda: self.store.list_locks("check"),
            "of what may have expired": lambda: self.store.cleanup(1),
        }
        for what, query in queries.items():
            try:
                query()
            except GwiError as exc:
                self.say(False, f"the list {what} is served by an index", str(exc), _INDEXES)
            else:
                self.say(True, f"the list {what} is served by an index")

    # --- measurements -------------------------------------------------------------------------

    def latency(self) -> None:
        for size in (1, 2, 3):
            times: list[float] = []
            until = time.monotonic() + self.seconds / 3
            while time.monotonic() < until and len(times) < 300:
                names = [self.name(f"l{len(times)}-{size}-{n}") for n in range(size)]
                begun = time.perf_counter()
                self.client.commit([create(name, {"data": {"x": 1}}) for name in names])
                times.append((time.perf_counter() - begun) * 1000)
            times.sort()
            self.measured(
                f"commit of {size} documents",
                "not told",
                f"p50 {times[len(times) // 2]:.1f} ms, p99 {times[len(times) * 99 // 100]:.1f} ms",
            )

    def contention(self) -> None:
        before = Counter(self.codes)
        claims: list[int] = []
        until = time.monotonic() + self.seconds

        def contend(number: int) -> None:
            n = 0
            while time.monotonic() < until:
                answer = self.store.claim(self.request(f"{number}-{n}", "contended"))
                if isinstance(answer, Claimed):
                    claims.append(answer.lease.fence)
                    self.store.finish(answer.lease, Outcome(JobStatus.SUCCEEDED, b""))
                    n += 1

        threads = [threading.Thread(target=contend, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = Counter(self.codes)
        codes.subtract(before)
        calls = sum(codes.values())
        self.say(len(set(claims)) == len(claims), f"{THREADS} threads, one lock: no token twice")
        self.measured(
            "jobs under one lock",
            "about one write a second to one document, sustained",
            f"{len(claims) / self.seconds:.0f}/s; of {calls} calls "
            + ", ".join(f"{100 * n / calls:.1f}% {code}" for code, n in codes.most_common() if n),
        )

    # --- the end ------------------------------------------------------------------------------

    def delete(self) -> None:
        """Delete all that this run has written."""
        for name in self.mine():
            try:
                self.client.commit([documents.delete(name)])
            except (Conflict, Unsettled):
                self._report(
                    Finding("left behind", None, "nothing is", name, "delete it", twin="nothing")
                )

    def mine(self) -> Iterator[str]:
        paths = Paths(self.url.prefix)
        tenant = paths.tenant("check")
        for document in self.client.query(Query(tenant, JOBS)).documents.values():
            Upkeep(self.client, paths).sweep(document.name, job_of(document))
        for parent, group in ((tenant, JOBS), (tenant, LOCKS), (paths.base, "things")):
            yield from self.client.query(Query(parent, group, mask=[])).documents


def _ended_early(exc: GwiError) -> Finding:
    return Finding(
        "the check ended early", False, "calls succeed", str(exc), "as it says", twin="the same"
    )
