"""The predicted step: the scheduler keeps to what was computed by hand, and no launch of the real step lacks a time."""

from __future__ import annotations

import json
from statistics import median
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize("name", pipeline.COLUMNS)
def test_each_launch_of_the_real_step_has_a_duration_and_known_resources(name):
    column, order = pipeline.COLUMNS[name], pipeline.Order(steps=1)
    launches = pipeline.launches_of(column, order)
    taken = {row["launch"]: row for row in KEPT["resources"] if row["column"] == name}
    us = pipeline.block_us(launches, taken, pipeline.alone_us(PARTS, column))
    assert us.keys() == {pipeline.label_of(launch) for launch in launches} and min(us.values()) > 0
    measured = {label for label, row in taken.items() if row["simulated_us"] is None}
    assert {label.partition(" ")[0] for label in measured} == {"gtp_update", "gtp_advantage", "gtp_record"}


def taken_row(launch: str, us: float | None) -> dict[str, Any]:
    """Return what a block takes of which a multiprocessor's registers hold two."""
    return {"launch": launch, "registers": 61, "threads": 512, "shared": 0, "simulated_us": us}


def test_a_launch_with_products_takes_its_simulated_time_and_its_start_and_others_as_measured():
    alone = {"gtp_chain": 80.0, "gtp_advantage": 3.0}
    gap = pipeline.CARD.gap_us
    assert pipeline.launch_us(taken_row("gtp_chain", 60.0), alone) == 60.0 + 1.9 - gap
    assert pipeline.launch_us(taken_row("gtp_advantage", None), alone) == 3.0
    assert pipeline.launch_us(taken_row("gtp_record", None), alone) == 1.5
    assert pipeline.launch_us(taken_row("gtp_record", None), alone | {"gtp_record": 2.0}) == 2.0


@pytest.mark.parametrize(("blocks", "waves"), [(1, 1), (132, 1), (264, 1), (265, 2), (600, 3)])
def test_a_launch_that_is_alone_on_the_card_takes_as_long_as_it_was_simulated(blocks, waves):
    row = taken_row("gtp_chain", 60.0)
    assert pipeline.CARD.fit(pipeline.needs_of(row)) == 2  # 64 registers a thread, of 65,536
    launch = SimpleNamespace(name="gtp_chain", phase="", grid=(blocks, 1))
    us = pipeline.block_us([launch], {"gtp_chain": row}, {})["gtp_chain"]  # pyright: ignore[reportArgumentType]
    assert us * waves == pytest.approx(60.0 + 1.9 - pipeline.CARD.gap_us)
    tasks = [Task(0.0, 1, (1, 0, 0)), Task(us, blocks, pipeline.needs_of(row), waits=(0,))]
    assert schedule(tasks, pipeline.CARD).us == pytest.approx(60.0 + 1.9)


def test_a_launchs_start_is_the_median_of_what_the_shapes_of_one_seed_took_longer():
    longer = [x.measured - x.simulated for x in pipeline.COMPARED[:9]]
    assert median(longer) == pytest.approx(pipeline.START_US)


def test_measured_steps_of_former_kernels_stay_apart_from_those_of_todays():
    column = pipeline.COLUMNS["tf32, K = 5"]
    usual = {"backend": "fused", "graph": True, "round": 1} | column
    rows = [usual | {"us": 80.0, "hidden": 512}, usual | {"us": 86.0, "commit": "486d94e"}, usual | {"us": 67.0}]
    parts = {"steps": {"commit": "abcdef0", "rows": rows}}
    assert pipeline.measured_step(parts, column) == {"us": 67.0, "commit": "abcdef0"}
    assert pipeline.measured_step(parts, column, former=True) == {"us": 86.0, "commit": "486d94e"}
    assert pipeline.measured_step(parts, column | {"seeds": 8}) is None


def shown(measured: dict[str, Any] | None, former: dict[str, Any] | None) -> str:
    """Return the page with the same measured steps in each column."""
    captured = {"measured": measured, "former": former}
    rows = [row | captured if row["order"] == pipeline.CAPTURED else row for row in KEPT["rows"]]
    return pipeline.markdown(KEPT | {"rows": rows})


def test_brackets_hold_steps_of_todays_kernels_and_a_line_those_of_former_ones():
    today, before = {"us": 65.4, "commit": "abcdef0"}, {"us": 86.0, "commit": "486d94e"}
    assert "(65)" in shown(today, None) and "measured in brackets" in shown(today, None)
    assert "former kernels" not in shown(today, None)
    page = shown(None, before)
    assert "brackets" not in page and "three slots, former kernels (486d94e): measured | 86.0 | 86.0 |" in page


def test_the_page_says_how_good_the_model_is_and_whose_figures_they_are():
    page = shown(None, None)
    assert "| `gtp_actor` | 8 | 8 | 78.7 | 67.6 | -14 % |" in page  # 65.7 + 1.9
    assert "A script measured them" in page and "not of `make gpu`" in page


def test_behind_a_step_a_launch_waits_for_all_of_the_step_before():
    order = pipeline.Order(steps=2, behind="step")
    launches = pipeline.launches_of(pipeline.COLUMNS["tf32, K = 5"], order)
    size = len(launches) // 2
    waiting = pipeline.waits_of(launches, order)
    assert all(set(range(size)) <= set(own) for own in waiting[size:])
    assert not all(set(range(size)) <= set(own) for own in pipeline.waits_of(launches, pipeline.Order(steps=2))[size:])
