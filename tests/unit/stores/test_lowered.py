"""Of a limit that was lowered: which places its claims may use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.stores.firestore.lowered import first_places

BEFORE, PROCESSES = 12, 3


@given(
    st.integers(1, 6),
    st.sets(st.integers(0, BEFORE - 1)),
    st.lists(st.tuples(st.integers(0, PROCESSES - 1), st.integers(-1, BEFORE), st.booleans())),
)
def test_what_was_listed_at_any_time_lets_no_more_begin_than_may(
    allowed: int, taken: set[int], steps: list[tuple[int, int, bool]]
) -> None:
    """Processes list places, take one, free one: none knows what the others do."""
    listed = [first_places(allowed, taken)] * PROCESSES
    for process, number, frees in steps:
        if number < 0:
            first = listed[process] = first_places(allowed, taken)
            left = max(allowed - len(taken), 0)
            assert sum(place not in taken for place in range(first)) == left, "all that may begin"
        elif frees:
            taken.discard(number)
        elif number < listed[process] and number not in taken:
            taken.add(number)
            assert len(taken) <= allowed


def test_one_that_is_no_longer_exceeded_is_used_in_full() -> None:
    assert first_places(100, {3, 99}) == 100
    assert first_places(100, {3, 100}) == 99
    assert first_places(100, range(50, 1000)) == 0
