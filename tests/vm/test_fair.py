"""Whose work the queue does next, and what it keeps about holders without work."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from irqchipd.fair import LEAST_NS, FairQueue

BUSY = ("a", "b", "c")
Costs = st.integers(0, 5_000_000)


def do_one(queue: FairQueue[int], cost: int) -> object:
    """Do the next piece of work; returns its holder."""
    holder, _ = queue.take()
    queue.charge(holder, cost)
    return holder


@given(st.lists(st.tuples(st.sampled_from(BUSY), Costs)), st.lists(Costs, min_size=1))
def test_an_idle_holders_work_waits_for_at_most_one_piece_of_each_other_holder(
    before: list[tuple[str, int]], costs: list[int]
) -> None:
    queue: FairQueue[int] = FairQueue()
    for alone, cost in before:
        queue.put(alone, 0)
        assert do_one(queue, cost) == alone
    for holder in BUSY:
        for number in range(len(costs) + 4):
            queue.put(holder, number)
    for cost in costs:
        do_one(queue, cost)
    queue.put("quiet", 0)
    waited_for = []
    while (other := do_one(queue, 1_000_000)) != "quiet":
        waited_for.append(other)
    assert max(Counter(waited_for).values(), default=0) <= 1


@given(st.lists(st.tuples(st.sampled_from(BUSY), Costs), max_size=40))
def test_busy_holders_get_equal_time_within_one_piece(pieces: list[tuple[str, int]]) -> None:
    cost = {holder: 1 + sum(cost for other, cost in pieces if other == holder) for holder in BUSY}
    queue: FairQueue[int] = FairQueue()
    for holder in BUSY:
        for number in range(200):
            queue.put(holder, number)
    had = Counter(dict.fromkeys(BUSY, 0))
    for _ in range(100):
        taken = str(queue.take()[0])
        queue.charge(taken, cost[taken])
        had[taken] += cost[taken] + LEAST_NS
    assert max(had.values()) - min(had.values()) <= max(cost.values()) + LEAST_NS


@given(st.lists(st.sampled_from(BUSY)))
def test_the_work_of_a_holder_is_done_in_its_order(holders: list[str]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, holder in enumerate(holders):
        queue.put(holder, number)
    done: dict[object, list[int]] = {}
    while queue:
        taken, number = queue.take()
        done.setdefault(taken, []).append(number)
    assert done == {
        holder: [number for number, other in enumerate(holders) if other == holder] for holder in set(holders)
    }


def test_time_used_while_others_were_idle_is_not_charged() -> None:
    queue: FairQueue[int] = FairQueue()
    for _ in range(1000):
        queue.charge("busy", 1_000_000)
    for number in range(100):
        queue.put("new", number)
    queue.put("busy", 0)
    assert "busy" in [do_one(queue, 1_000_000) for _ in range(3)]


def test_holders_that_come_and_go_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(10_000):
        queue.put(("queued", number), 0)
        do_one(queue, 1000)
        queue.charge(("at once", number), 1000)
    assert len(queue._used) <= 128
    for number in range(1000):
        queue.put(("waiting", number), 0)
    while queue:
        do_one(queue, 1000)
    queue.put("last", 0)
    assert len(queue._used) <= 129, "also after many had work at once"


def test_a_heavy_holder_is_not_forgotten_because_of_many_light_ones() -> None:
    queue: FairQueue[int] = FairQueue()
    for holder in ("hog", "other"):
        for number in range(200):
            queue.put(holder, number)
    while do_one(queue, 1_000_000_000) != "hog":
        pass
    for number in range(150):
        queue.put(number, 0)
    assert [do_one(queue, 1000) for _ in range(150)].count("hog") == 0
