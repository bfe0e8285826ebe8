"""What jobs cost and where it ends: a model of counted calls, documented prices and documented limits.

    python -m benchmarks scale

Nothing is measured here. What a job writes is counted by tests (``tests/firestore/test_scale.py`` holds
the model against Firestore's emulator); prices and limits are Google's, each with its page's address.
``docs/scale.md`` has the result and what to do about it.
"""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass, field

# --- what Google documents ------------------------------------------------------------------------

#: https://cloud.google.com/firestore/pricing, USD each, in a multi-region.
READ, WRITE, DELETE = 0.06 / 100_000, 0.18 / 100_000, 0.02 / 100_000
#: https://cloud.google.com/pubsub/pricing: USD a byte, published and delivered; the least of a request.
BYTE, SMALLEST = 40 / 2**40, 1000
#: https://cloud.google.com/run/pricing, USD for a second of one vCPU and 1 GiB, instance-based billing.
SECOND = 0.000018 + 0.000002

#: https://cloud.google.com/firestore/native/docs/best-practices: writes a second to an index whose
#: values only grow.
INDEX = 500.0
#: The same page: a new range of keys takes this many, and half more every five minutes.
RAMP = 500.0
#: https://cloud.google.com/firestore/quotas: databases in a project.
DATABASES = 100
#: https://cloud.google.com/pubsub/quotas: bytes a second published in a large region, and in a small one.
LARGE_REGION, SMALL_REGION = 4e9, 200e6
#: Writes a second that we plan for in one database. Firestore names no limit; this is an assumption.
DATABASE = 10_000.0


# --- what a job does ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One kind of job. ``seconds`` is how long a worker is busy with it."""

    name: str
    steps: int = 0
    seconds: float = 0.05
    #: Deliveries of a duplicate under another task id.
    duplicates: float = 0.0
    #: Times that it finds its lock held.
    waits: float = 0.0
    #: Bytes of its message.
    message: int = 1500
    reliable: bool = True
    #: Seconds of ``lock_ttl``.
    lock_ttl: float = 30.0

    @property
    def renewals(self) -> float:
        """A third of ``lock_ttl`` apart; a step is one, too."""
        every = self.lock_ttl / 3
        return max(0.0, self.seconds // every - self.steps) if self.reliable else 0.0

    @property
    def writes(self) -> float:
        if not self.reliable:
            return 1.0  # its result
        return 4 + 3 * self.steps + 2 * self.renewals + self.duplicates

    @property
    def deletes(self) -> float:
        """Its lock, and by the TTL policy its record, result and steps."""
        return (1 + 2 + self.steps + self.duplicates) if self.reliable else 1.0

    @property
    def reads(self) -> float:
        return 2 * self.duplicates + 2 * self.waits if self.reliable else 0.0

    @property
    def commits(self) -> float:
        return 2 + self.steps + self.renewals if self.reliable else 1.0

    @property
    def indexed(self) -> float:
        """Writes of the job's record, whose time is indexed: claim, each step, finish."""
        return 2.0 + self.steps if self.reliable else 0.0

    @property
    def messages(self) -> float:
        return 1 + self.duplicates + self.waits

    def usd(self) -> dict[str, float]:
        """Of one job, by what it is for."""
        size = max(self.message, SMALLEST)
        return {
            "Firestore": self.writes * WRITE + self.reads * READ + self.deletes * DELETE,
            "Pub/Sub": self.messages * 2 * size * BYTE,
            "Cloud Run": self.seconds * SECOND,
        }


KINDS = (
    Kind("plain task with a result", reliable=False),
    Kind("reliable, no steps"),
    Kind("reliable, 3 steps", steps=3, seconds=1.0),
    Kind("reliable, 20 steps, 5 minutes", steps=20, seconds=300.0),
    Kind("reliable, no steps, 1 hour", seconds=3600.0),
    Kind("reliable, 3 steps, each called twice", steps=3, seconds=1.0, duplicates=1.0),
    Kind("reliable, waits 5 times for its lock", seconds=1.0, waits=5.0),
)


# --- where it ends --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    what: str
    #: How much of it is used: 1.0 is all.
    used: float
    #: What to change.
    then: str


def limits(kind: Kind, rate: float, tenants: int, *, large_region: bool = True) -> list[Limit]:
    """How much of each limit is used by ``rate`` jobs a second, spread evenly over ``tenants``."""
    region = LARGE_REGION if large_region else SMALL_REGION
    writes = rate * (kind.writes + kind.deletes)
    return [
        Limit(
            "one tenant's index of times",
            rate * kind.indexed / tenants / INDEX,
            "fewer steps (a cursor saves once a second), or several tenants for one customer",
        ),
        Limit(
            "the index that cleanup() asks by",
            rate * 2 / INDEX,
            "leave out (status, gc_at); the TTL policy deletes by itself",
        ),
        Limit(
            "writes of one database (assumed)",
            writes / DATABASE,
            "database=t-{tenant_hash}: a database for each tenant, or several stores",
        ),
        Limit(
            "databases of one project",
            writes / DATABASE / DATABASES,
            "several projects, each with its own queue and workers",
        ),
        Limit(
            "Pub/Sub's bytes in a region",
            rate * kind.messages * max(kind.message, SMALLEST) / region,
            "a larger region, several regions, a higher quota, smaller messages",
        ),
    ]


def workers(kind: Kind, rate: float, busy: float = 0.7) -> int:
    """Places that are needed, each busy for this share of the time."""
    return max(1, round(rate * kind.seconds / busy))


def minutes_to_warm(rate: float) -> float:
    """Firestore's advice: 500 a second at first, half more every five minutes."""
    minutes, now = 0.0, RAMP
    while now < rate:
        minutes, now = minutes + 5, now * 1.5
    return minutes


# --- noisy tenants --------------------------------------------------------------------------------


@dataclass
class Waits:
    """Seconds from a job's call to its start, by tenant."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def p95(self, tenant: str) -> float:
        return statistics.quantiles(self.of[tenant], n=20)[-1]


def noisy(
    places: int, *, burst: int, at_a_time: int | None, seconds: float = 1.0, seed: int = 1
) -> Waits:
    """One tenant sends ``burst`` jobs at once, another one job every two seconds for ten minutes.

    ``at_a_time``: how many of a tenant may run (a limit, as in ``examples/chord_per_tenant.py``); one
    over that is published anew and tried after 1 to 30 seconds.
    """
    rng = random.Random(seed)
    waits = Waits({"noisy": [], "quiet": []})
    #: (time, order, what, tenant, called, waits so far)
    events: list[tuple[float, int, str, str, float, int]] = []
    order = 0

    def at(time: float, what: str, tenant: str, called: float, tries: int = 0) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, what, tenant, called, tries))

    for n in range(burst):
        at(n * 0.0001, "queued", "noisy", n * 0.0001)
    for n in range(300):
        at(n * 2.0, "queued", "quiet", n * 2.0)
    queue: list[tuple[int, str, float, int]] = []
    free, running = places, {"noisy": 0, "quiet": 0}
    while events:
        now, number, what, tenant, called, tries = heapq.heappop(events)
        if what == "queued":
            heapq.heappush(queue, (number, tenant, called, tries))
        else:
            free += 1
            running[tenant] -= 1
        while free and queue:
            _, tenant, called, tries = heapq.heappop(queue)
            if at_a_time is not None and running[tenant] >= at_a_time:
                delay = min(30.0, 2.0**tries) * rng.uniform(0.5, 1.0)
                at(now + delay, "queued", tenant, called, tries + 1)
                continue
            free -= 1
            running[tenant] += 1
            waits.of[tenant].append(now - called)
            at(now + seconds * rng.uniform(0.5, 1.5), "ended", tenant, called)
    return waits


def main(quick: bool = False) -> int:
    print("USD per million jobs (multi-region Firestore, list prices)\n")
    print(
        f"{'kind':40}{'Firestore':>10}{'Pub/Sub':>10}{'Cloud Run':>11}{'writes':>8}{'commits':>9}"
    )
    for kind in KINDS:
        usd = {what: 1e6 * price for what, price in kind.usd().items()}
        print(
            f"{kind.name:40}{usd['Firestore']:10.2f}{usd['Pub/Sub']:10.2f}{usd['Cloud Run']:11.2f}"
            f"{kind.writes:8.0f}{kind.commits:9.0f}"
        )
    kind = KINDS[2]
    for rate, tenants in ((10, 10), (1_000, 500), (100_000, 50_000)):
        print(f"\n{rate:,} jobs a second of {tenants:,} tenants ({kind.name})")
        warm = minutes_to_warm(rate * kind.writes)
        print(f"  places for jobs: {workers(kind, rate):,}; warm after {warm:.0f} minutes")
        for limit in limits(kind, rate, tenants):
            advice = f"  -> {limit.then}" if limit.used > 0.5 else ""
            print(f"  {limit.what:36}{100 * limit.used:10.1f} %{advice}")
    print(
        "\na burst of 20,000 jobs of one tenant, 40 places: p95 of another tenant's wait, seconds"
    )
    for at_a_time in (None, 30):
        waits = noisy(40, burst=2_000 if quick else 20_000, at_a_time=at_a_time)
        told = "no limit" if at_a_time is None else f"{at_a_time} at a time"
        print(f"  {told:20}{waits.p95('quiet'):8.1f}")
    return 0


if __name__ == "__main__":
    main()
