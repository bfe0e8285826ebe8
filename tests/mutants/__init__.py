"""Promises broken one at a time: the tests named beside each must notice. ``python -m tests.mutants``."""

from tests.mutants.brokers import BROKER
from tests.mutants.firestore import FIRESTORE
from tests.mutants.jobs import HANDOVER, SERVICE, WORKER
from tests.mutants.mutant import Mutant
from tests.mutants.operators import OPERATORS
from tests.mutants.pubsub import PUBSUB
from tests.mutants.results import RESULTS
from tests.mutants.sqlite import SQLITE
from tests.mutants.trust import TRUST

GROUPS: dict[str, list[Mutant]] = {
    "sqlite": SQLITE,
    "handover": HANDOVER,
    "worker": WORKER,
    "service": SERVICE,
    "operators": OPERATORS,
    "trust": TRUST,
    "pubsub": PUBSUB,
    "broker": BROKER,
    "firestore": FIRESTORE,
    "results": RESULTS,
}
#: Those whose tests run on the emulators.
ON_EMULATORS = {"broker", "firestore", "results"}
