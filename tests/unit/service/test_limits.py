"""How much of all bodies together is held in memory."""

from __future__ import annotations

from gwi_celery.service.limits import SMALL, Body, Budget


def test_small_bodies_find_room_beside_large_ones_and_what_is_let_go_is_free() -> None:
    budget = Budget(8_000_000)
    large, small = Body(budget), Body(budget)
    for _ in range(6):
        large.count(1_000_000)
    assert budget.left_for_large == 0
    small.count(SMALL)
    assert budget.left_for_large == 0
    assert budget.left == 2_000_000 - SMALL
    large.release(but=SMALL)
    assert budget.left_for_large == 6_000_000
    assert budget.left == 8_000_000 - 2 * SMALL
    for body in (large, small, large):
        body.release()
    assert (budget.left, budget.left_for_large) == (8_000_000, 6_000_000)
