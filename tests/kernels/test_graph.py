"""Who waits for whom, by hand and for any launches; and lanes that add no wait."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from gtp_kernels import graph
from gtp_kernels.launch import Launch
from hypothesis import given
from hypothesis import strategies as st

MEMORY = torch.zeros(64)


def launch(reads: list[tuple[int, int]], writes: list[tuple[int, int]]) -> Launch:
    """Return a launch that declares parts of MEMORY, each from one element to another."""
    named = {f"read{i}": MEMORY[a:b] for i, (a, b) in enumerate(reads)}
    written = {f"write{i}": MEMORY[a:b] for i, (a, b) in enumerate(writes)}
    return Launch("", SimpleNamespace(writes=tuple(written)), (1,), named | written)


def test_a_launch_waits_for_the_last_that_wrote_what_it_reads_and_for_all_that_read_what_it_writes():
    a, b = (0, 8), (8, 16)
    launches = [launch([], [a]), launch([a], [b]), launch([a], []), launch([], [a]), launch([a, b], [])]
    assert graph.waits(launches) == [[], [0], [0], [1, 2], [3]]


def test_two_that_read_the_same_wait_for_neither():
    assert graph.waits([launch([(0, 8)], [(8, 9)]), launch([(0, 8)], [(9, 10)])]) == [[], []]


def test_parts_of_a_tensor_that_overlap_are_the_same_memory():
    launches = [launch([], [(0, 64)]), launch([], [(8, 16)]), launch([(16, 32)], []), launch([(10, 12)], [])]
    assert graph.waits(launches) == [[], [0], [0], [1]]


def test_the_memory_of_a_view_ends_with_its_last_element():
    matrix = MEMORY[:32].view(4, 8)
    first, end = graph.span(matrix[:, 2:4])
    assert (first - MEMORY.data_ptr(), end - MEMORY.data_ptr()) == (8, 4 * 28)


part = st.tuples(st.integers(0, 7), st.integers(1, 3)).map(lambda at: (at[0], min(8, at[0] + at[1])))
some_launches = st.lists(st.tuples(st.lists(part, max_size=3), st.lists(part, max_size=2)), max_size=12)


def ends_before(waiting: list[list[int]]) -> list[set[int]]:
    """Return for each launch all that it waits for, directly or not."""
    found: list[set[int]] = []
    for own in waiting:
        found.append(set(own).union(*(found[j] for j in own)))
    return found


@given(some_launches)
def test_launches_that_may_not_change_places_are_ordered_and_no_wait_is_said_twice(declared):
    launches = [launch(*own) for own in declared]
    waiting = graph.waits(launches)
    before = ends_before(waiting)
    for j, (reads, writes) in enumerate(declared):
        for i, (earlier_reads, earlier_writes) in enumerate(declared[:j]):
            pairs = [(a, b) for a in writes for b in earlier_reads + earlier_writes]
            pairs += [(a, b) for a in reads for b in earlier_writes]
            if any(a[0] < b[1] and b[0] < a[1] for a, b in pairs):
                assert i in before[j]
        for i in waiting[j]:
            assert not any(i in before[other] for other in waiting[j])


@given(some_launches)
def test_a_lane_adds_no_wait(declared):
    waiting = graph.waits([launch(*own) for own in declared])
    before, dealt = ends_before(waiting), graph.lanes(waiting)
    last: dict[int, int] = {}
    for i, lane in enumerate(dealt):
        if lane in last:
            assert last[lane] in before[i]
        last[lane] = i
    assert set(dealt) == set(range(len(last)))


def test_the_longest_path_is_one_of_launches_that_wait_for_each_other():
    assert graph.longest_path([[], [0], [], [1, 2], [3], [2]]) == [0, 1, 3, 4]
