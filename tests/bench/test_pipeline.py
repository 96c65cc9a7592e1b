"""The predicted step: the scheduler keeps to what was computed by hand, and no launch of the real step lacks a time."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import pipeline
from bench.schedule import Card, Task, longest_path, schedule

# Two places, each with room for one whole block or two halves.
CARD = Card(places=2, room=(100, 100, 100), gap_us=1.0)
WHOLE, HALF = (100, 100, 100), (50, 10, 10)
PARTS = json.loads(pipeline.MEASURED.read_text())["parts"]
KEPT = json.loads(pipeline.OUT.read_text())


def test_a_launch_that_waits_begins_a_gap_after_the_last_of_those_it_waits_for():
    found = schedule([Task(5, 1, WHOLE), Task(9, 1, WHOLE), Task(2, 1, WHOLE, waits=(0, 1))], CARD)
    assert found.begin == [0, 0, 10] and found.end == [5, 9, 12]


@pytest.mark.parametrize(("needs", "us"), [(WHOLE, 12), (HALF, 8)], ids=["3 waves of one a place", "2 of two a place"])
def test_blocks_beyond_the_places_run_in_waves(needs, us):
    assert schedule([Task(4, 5, needs)], CARD).us == us == 4 * CARD.waves(needs, 5)


def test_blocks_of_two_launches_share_a_place_only_where_both_have_room():
    assert schedule([Task(4, 2, HALF), Task(4, 2, HALF)], CARD).us == 4
    assert schedule([Task(4, 2, HALF), Task(4, 2, WHOLE)], CARD).us == 8
    assert schedule([Task(4, 2, (60, 0, 0)), Task(4, 2, (0, 60, 0))], CARD).us == 4


def test_what_was_issued_first_goes_first():
    assert schedule([Task(4, 3, WHOLE), Task(4, 1, WHOLE), Task(4, 1, WHOLE)], CARD).begin == [0, 4, 8]


def test_a_block_that_runs_is_not_interrupted():
    found = schedule([Task(1, 1, WHOLE), Task(8, 1, WHOLE), Task(3, 2, WHOLE, waits=(0,))], CARD)
    assert (found.begin[2], found.end[2], found.end[1]) == (2, 8, 8)


def test_busy_is_the_share_of_places_that_hold_a_block():
    assert schedule([Task(4, 2, HALF), Task(3, 1, WHOLE, waits=(0,))], CARD).busy == pytest.approx((4 * 2 + 3) / 16)


def test_a_block_that_no_place_has_room_for_is_named():
    with pytest.raises(ValueError, match="a block takes"):
        schedule([Task(1, 1, (101, 0, 0))], CARD)


def test_the_longest_path_counts_waves_and_gaps():
    tasks = [Task(5, 1, WHOLE), Task(2, 6, WHOLE), Task(1, 1, WHOLE, waits=(0, 1)), Task(7, 1, WHOLE)]
    assert longest_path(tasks, CARD) == ([1, 2], 8)


@st.composite
def graphs(draw):
    tasks = []
    for i in range(draw(st.integers(1, 12))):
        waits = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        us, blocks = draw(st.integers(1, 20)), draw(st.integers(1, 9))
        tasks.append(Task(us, blocks, draw(st.sampled_from([WHOLE, HALF])), sorted(waits)))
    return tasks


@given(graphs())
def test_no_schedule_is_shorter_than_the_longest_path_or_than_the_work_on_all_places(tasks):
    found = schedule(tasks, CARD)
    work = sum(task.us * task.blocks * task.needs[0] for task in tasks) / (CARD.places * CARD.room[0])
    assert found.us >= max(longest_path(tasks, CARD)[1], work)
    for i, task in enumerate(tasks):
        assert found.end[i] >= found.begin[i] + task.us
        assert all(found.begin[i] >= found.end[j] + CARD.gap_us for j in task.waits)


@pytest.mark.parametrize("column", pipeline.COLUMNS.values(), ids=pipeline.COLUMNS)
def test_each_launch_of_the_real_step_has_a_duration_and_known_resources(column):
    launches = pipeline.launches_of(column, pipeline.Order(steps=1))
    needs = pipeline.needs_of(KEPT["resources"], column["precision"])
    us, _ = pipeline.block_us(launches, pipeline.Alone.of(PARTS, column), needs)
    assert us.keys() == {pipeline.label_of(launch) for launch in launches} and min(us.values()) > 0


def test_parts_of_a_measured_launch_share_its_time_and_count_as_estimates():
    names = ("gtp_teacher", "gtp_actor", "gtp_critic_forward", "gtp_critic_backward", "gtp_advantage")
    launches = [SimpleNamespace(name=name, phase="", grid=(132, 2)) for name in names]
    alone = pipeline.Alone({"gtp_actor": 80.0, "gtp_critic": 20.0, "gtp_advantage": 3.0}, set())
    launches[0].grid = (132, 1)
    needs = dict.fromkeys(names, (40_000, 0, 256))  # one block a multiprocessor, so two waves of 264
    us, estimated = pipeline.block_us(launches, alone, needs)
    parts = [80.0 * 0.26 / 2, 80.0 * 0.61 / 2, 20.0 * 0.53 / 2, 20.0 * 0.38 / 2]
    assert us == pytest.approx(dict(zip(names, (*parts, 1.5), strict=True))) and estimated == 4
    measured = pipeline.Alone(dict.fromkeys(names, 8.0), set())  # a later measurement has the parts themselves
    assert pipeline.block_us(launches, measured, needs) == ({**dict.fromkeys(names, 4.0), "gtp_teacher": 8.0}, 0)


def test_behind_a_step_a_launch_waits_for_all_of_the_step_before():
    order = pipeline.Order(steps=2, behind="step")
    launches = pipeline.launches_of(pipeline.COLUMNS["tf32, K = 5"], order)
    size = len(launches) // 2
    waiting = pipeline.waits_of(launches, order)
    assert all(set(range(size)) <= set(own) for own in waiting[size:])
    assert not all(set(range(size)) <= set(own) for own in pipeline.waits_of(launches, pipeline.Order(steps=2))[size:])
