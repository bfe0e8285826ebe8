"""Of a limit that was lowered: which places its claims may use."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.stores.firestore.lowered import first_places

BEFORE, PROCESSES = 12, 3


ALLOWED = st.integers(1, 6)
TAKEN = st.sets(st.integers(0, BEFORE - 1), max_size=BEFORE)


def test_just_as_many_places_are_free_among_the_first_as_jobs_may_begin() -> None:
    for allowed, states in itertools.product(range(1, 7), itertools.product((0, 1), repeat=8)):
        taken = {place for place, state in enumerate(states) if state}
        free = [place for place in range(first_places(allowed, taken)) if place not in taken]
        assert len(free) == max(allowed - len(taken), 0), (allowed, taken)


@given(
    ALLOWED,
    TAKEN,
    st.lists(
        st.tuples(
            st.sampled_from(["list", "take", "free"]),
            st.integers(0, PROCESSES - 1),
            st.integers(0, BEFORE - 1),
        ),
        min_size=10,
    ),
)
def test_what_was_listed_at_any_time_lets_no_more_begin_than_may(
    allowed: int, taken: set[int], steps: list[tuple[str, int, int]]
) -> None:
    """Processes list places, take one, free one: none knows what the others do."""
    listed = [first_places(allowed, taken)] * PROCESSES
    for step, process, number in steps:
        if step == "list":
            listed[process] = first_places(allowed, taken)
        elif step == "free":
            taken.discard(number)
        elif number < listed[process] and number not in taken:
            taken.add(number)
            assert len(taken) <= allowed


def test_one_that_is_no_longer_exceeded_is_used_in_full() -> None:
    assert first_places(100, {3, 99}) == 100
    assert first_places(100, {3, 100}) == 99
    assert first_places(100, {3, 98, 99, 100}) == 97
    assert first_places(100, range(50, 1000)) == 0
