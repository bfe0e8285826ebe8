"""What every shared store keeps between processes, and when one of them is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from gwi_celery.errors import LeaseLost
from gwi_celery.stores.base import Claimed, Completed, Held, Lease, Store
from tests import zygote
from tests.contract.contender import request
from tests.contract.stores import SHARED, step


class Contender:
    """A process that runs tests/contract/contender.py."""

    def __init__(self, backend: str, place: str) -> None:
        self._process = zygote.start("tests.contract.contender", [backend, place], talks=True)

    def tell(self, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict:
        """The next line, waited for; fails once the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the contender ended with {self._process.wait()}"
        return json.loads(line)

    def kill(self) -> list[dict]:
        """SIGKILL, and the answers it had given before that were not read yet."""
        self._process.kill()
        assert self._process.stdout is not None
        # A line that was cut in two was not answered.
        rest = [json.loads(line) for line in self._process.stdout if line.endswith("\n")]
        self._close()
        return rest

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._close()


@pytest.fixture(params=SHARED)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def place(tmp_path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def store(backend, place) -> Iterator[Store]:
    store = SHARED[backend](place)
    yield store
    store.close()


@pytest.fixture
def contender(backend, place) -> Iterator[Callable[[], Contender]]:
    """Starts contenders, which are ready together once each has said so."""
    started: list[Contender] = []

    def start() -> Contender:
        started.append(Contender(backend, place))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_each_key_goes_to_one_of_many_processes(store, contender):
    keys = [f"k{i}" for i in range(50)]
    contenders = [contender() for _ in range(4)]
    for each in contenders:
        assert each.answer()["ready"]

    for each in contenders:
        each.tell("race", ",".join(keys))
    answers = [each.answer() for each in contenders]

    won = [key for answer in answers for key in answer["won"]]
    assert sorted(won) == sorted(keys)
    assert sum(answer["held"] for answer in answers) == 3 * len(keys)
    fences = [fence for answer in answers for fence in answer["won"].values()]
    assert len(set(fences)) == len(fences)
    for answer in answers:
        for key, fence in answer["won"].items():
            lock = store.get_lock(request(key, "").lock)
            assert lock is not None
            assert lock.fence == fence


def test_a_killed_holder_is_taken_over_and_its_steps_are_kept(store, contender):
    holder = contender()
    holder.answer()
    holder.tell("hold", "job", "0.5")
    fence = holder.answer()["fence"]
    steps = [holder.answer()["step"] for _ in range(5)]
    steps += [answer["step"] for answer in holder.kill()]

    claim = request("job", "successor")
    answer = store.claim(claim)
    while isinstance(answer, Held):
        assert answer.retry_after <= 0.5
        time.sleep(answer.retry_after)  # the time the store itself names
        answer = store.claim(claim)

    assert isinstance(answer, Claimed)
    assert answer.lease.fence > fence
    assert (answer.record.attempt, answer.record.crashes) == (2, 1)
    assert answer.has_checkpoints
    kept = [checkpoint.name for checkpoint in store.load(answer.lease)]
    # One more may have been recorded than was said before the kill.
    assert kept[: len(steps)] == steps
    assert len(kept) <= len(steps) + 1
    zombie = Lease(claim.job, claim.lock, fence, "n", 0.5, 60.0, generation=1)
    with pytest.raises(LeaseLost):
        store.save(zombie, step("late"))


def test_no_job_that_was_done_is_lost_to_a_kill(store, contender):
    done: list[dict] = []
    for _ in range(3):
        worker = contender()
        worker.answer()
        worker.tell("churn")
        done += [worker.answer() for _ in range(10)]
        done += worker.kill()

    for job in done:
        answer = store.claim(request(job["key"], "reader"))
        assert isinstance(answer, Completed)
        assert answer.record.outcome == job["key"].encode()
        assert answer.record.fence == job["fence"]
    fences = [job["fence"] for job in done]
    assert fences == sorted(set(fences))


def test_both_sides_of_a_fork_go_on_with_one_store(contender):
    parent = contender()
    parent.answer()
    parent.tell("fork")
    assert parent.answer() == {"child": 0, "parent": True, "sees_the_childs": True}
