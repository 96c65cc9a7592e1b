"""Units of actions: what a file's numbers mean in the environment, asked for where data and bounds leave it open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_cases import columns, refusal, write
from eval_cases import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gtp_fast.data import check, dataset, units
from gtp_fast.data.spec import Bounds, DataSpec, Units
from gtp_fast.data.units import Actions
from gtp_fast.errors import DataError

INF = float("inf")


def scored_in(low: float, high: float) -> DataSpec:
    """Return the entry of a file of one's own, scored in an environment with these bounds."""
    return replace(spec("Bounded", low=low, high=high), action_bounds=((low,), (high,)))


def file(path: Path, action: Any, **attributes: Any) -> Path:
    """Write a small file with one action in every row, or with the given ones."""
    values = columns(sizes=(4, 1))
    values["actions"] = np.resize(np.float32(action), (60, 1))
    write(path, values)
    with h5py.File(path, "a") as opened:
        opened.attrs.update(attributes)
    return path


SYMMETRIC, QUARTER, POSITIVE = ((-2.0,), (2.0,)), ((-0.25,), (0.25,)), ((0.0,), (1.0,))
READINGS: dict[str, tuple[list[float], Bounds | None, Units | None]] = {
    "wide bounds, small actions: open": ([0.6, -0.6], SYMMETRIC, None),
    "wide bounds, actions of both": ([1.0, -1.0], SYMMETRIC, None),
    "wide bounds, a rounding above 1: open": ([1.0000001], SYMMETRIC, None),
    "wide bounds, large actions": ([1.5], SYMMETRIC, "environment"),
    "unsymmetric wide bounds, actions below them: open": ([-0.5], ((0.0,), (2.0,)), None),
    "bounds of 1": ([0.6], ((-1.0,), (1.0,)), "environment"),
    "bounds inside, actions inside": ([0.2], QUARTER, "environment"),
    "bounds inside, actions outside: open": ([0.6], QUARTER, None),
    "unsymmetric bounds, actions inside": ([0.6], POSITIVE, "environment"),
    "unsymmetric bounds, actions outside: open": ([-0.6], POSITIVE, None),
    "no finite bounds": ([0.6], ((-INF,), (INF,)), "environment"),
    "bounds that nobody knows: open": ([0.6], None, None),
}


@pytest.mark.parametrize(("actions", "bounds", "reading"), READINGS.values(), ids=READINGS)
def test_units_are_settled_where_one_reading_fits_and_left_open_elsewhere(actions, bounds, reading):
    assert units.decide([np.float32(actions)[:, None]], Actions(None, bounds, named=True)).units == reading


@given(
    arrays(np.float32, (7, 2), elements=st.floats(-1, 1, width=32)),
    st.tuples(st.floats(-50, 50, width=32), st.floats(0.125, 50, width=32)),
)
@settings(deadline=None)
def test_actions_come_back_as_they_were(part, interval):
    low, high = interval[0], float(np.float32(interval[0] + interval[1]))
    bounds = (low, low), (high, high)
    raw = units.from_unit(part, bounds).astype(np.float32)
    assert (raw >= np.float32(low)).all() and (raw <= np.float32(high)).all()
    scaled = raw.copy()
    units.scale_(scaled, bounds)
    assert np.abs(units.from_unit(scaled, bounds) - raw).max() <= 1e-6 * max(1.0, abs(low), abs(high))


def test_a_raw_file_of_wide_bounds_is_asked_about(tmp_path: Path):
    assert refusal(file(tmp_path / "a.hdf5", 0.6), scored_in(-2, 2)) == (
        "FILE: actions reach 0.6: they lie in [-1, 1] and may be scaled, or in the environment's units, [-2, 2]; pass "
        "--action-units environment if the environment received them as they are, or scaled if -1 and 1 stood for its "
        "bounds (a file states it by file.attrs['action_units'] = 'environment')"
    )


@pytest.mark.parametrize(("named", "expected"), [("environment", 0.3), ("scaled", 0.6)])
@pytest.mark.parametrize("by", ["flag", "file"])
def test_units_are_taken_from_the_flag_and_from_the_file(tmp_path: Path, named: Units, expected: float, by: str):
    stated = {"action_units": named} if by == "file" else {}
    path = file(tmp_path / "a.hdf5", 0.6, **stated)
    data = dataset.load(scored_in(-2, 2), path, action_units=named if by == "flag" else None)
    assert np.allclose(data.action_NA, expected)
    assert (data.action_units, data.action_bounds) == ("scaled", SYMMETRIC)


def test_clipping_raw_actions_clips_to_the_environments_bounds(tmp_path: Path):
    data = dataset.load(scored_in(-2, 2), file(tmp_path / "a.hdf5", [1.5, 2.5]), clip_actions=True)
    assert np.unique(data.action_NA).tolist() == [0.75, 1.0]
    assert data.clipped == 30 and "clipped 30 action values into [-2, 2]" in data.notes


REFUSED: dict[str, tuple[float, tuple[float, float], Units | None, str]] = {
    "outside narrow bounds": (
        0.6,
        (-0.25, 0.25),
        None,
        "FILE: actions in row 0 reach 0.6, outside the environment's bounds [-0.25, 0.25]; pass --action-units scaled "
        "if -1 and 1 stand for its bounds, or --action-units environment and --clip-actions to clip them (60 values)",
    ),
    "outside unsymmetric bounds": (
        -0.7,
        (0.0, 1.0),
        "environment",
        "FILE: actions in row 0 reach -0.7, outside the environment's bounds [0, 1]; pass --clip-actions to clip them "
        "(60 values), or name the environment that the data came from",
    ),
    "outside wide bounds": (
        2.5,
        (-2.0, 2.0),
        None,
        "FILE: actions in row 0 reach 2.5, outside the environment's bounds [-2, 2]; pass --clip-actions to clip them "
        "(60 values), or name the environment that the data came from",
    ),
    "no bounds": (
        1.5,
        (-INF, INF),
        None,
        "FILE: actions in row 0 reach 1.5, outside [-1, 1]; pass --clip-actions to clip them (60 values), or scale "
        "them when writing the file",
    ),
}


@pytest.mark.parametrize(("action", "bounds", "named", "words"), REFUSED.values(), ids=REFUSED)
def test_actions_outside_their_bounds_are_a_fault_in_training_and_in_the_check(
    tmp_path: Path, action, bounds, named, words
):
    path, scorer = file(tmp_path / "a.hdf5", action), scored_in(*bounds)
    with pytest.raises(DataError) as error:
        dataset.load(scorer, path, action_units=named)
    assert str(error.value).replace(str(path), "FILE") == words
    found = check.check(path, scorer, named)
    assert [fault["message"].replace(str(path), "FILE") for fault in found["faults"]] == [words]


def test_actions_of_another_size_than_the_environments_are_a_fault(tmp_path: Path):
    scorer = replace(scored_in(-2, 2), action_bounds=((-2.0,) * 3, (2.0,) * 3))
    words = refusal(file(tmp_path / "a.hdf5", 0.6), scorer)
    assert words.startswith("FILE: actions have 1 numbers, but the environment's have 3; ")


def test_a_file_may_state_bounds_that_nobody_else_knows(tmp_path: Path):
    unknown = replace(scored_in(-3, 3), action_bounds=None)
    path = file(tmp_path / "a.hdf5", 1.5, action_units="environment", action_low=[-3.0], action_high=[3.0])
    assert np.allclose(dataset.load(unknown, path).action_NA, 0.5)
    words = refusal(file(tmp_path / "b.hdf5", 0.5), unknown)
    assert "the bounds of the environment's actions are not known here; pass --action-units scaled if" in words
    words = refusal(file(tmp_path / "c.hdf5", 0.5, action_units="environment"), unknown)
    assert "actions are in the environment's units, and its bounds are not known" in words


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another word": ({"action_units": "radians"}, "the attribute action_units is 'radians', expected scaled or"),
    "a number": ({"action_units": 2}, "the attribute action_units is '2', expected scaled or environment"),
    "one bound": ({"action_low": [0.0]}, "action_low and action_high go together"),
    "bounds that are text": ({"action_low": "a", "action_high": "b"}, "expected a finite number for each action"),
    "bounds in the wrong order": ({"action_low": [1.0], "action_high": [0.0]}, "low below high; write them again"),
    "endless bounds": ({"action_low": [-INF], "action_high": [INF]}, "expected a finite number for each action"),
}


@pytest.mark.parametrize(("attributes", "words"), WRONG.values(), ids=WRONG)
def test_attributes_without_a_meaning_are_refused(tmp_path: Path, attributes, words):
    assert words in refusal(file(tmp_path / "a.hdf5", 0.5, **attributes), scored_in(-2, 2))


def test_a_flag_that_contradicts_the_file_is_refused(tmp_path: Path):
    path = file(tmp_path / "a.hdf5", 0.6, action_units="scaled")
    with pytest.raises(
        DataError, match="has scaled actions, by its own statement, and --action-units says environment"
    ):
        dataset.load(scored_in(-2, 2), path, action_units="environment")


def test_shards_are_read_as_one_data_set(tmp_path: Path):
    file(tmp_path / "a.hdf5", 0.6)
    file(tmp_path / "b.hdf5", 1.5)  # which only the environment's units explain
    data = dataset.load(scored_in(-2, 2), tmp_path)
    assert np.allclose(np.unique(data.action_NA), [0.3, 0.75])
    file(tmp_path / "b.hdf5", 1.5, action_units="environment")
    with pytest.raises(DataError, match="the shards state different units or bounds"):
        dataset.load(scored_in(-2, 2), tmp_path)


SAID: dict[str, tuple[tuple[float, float], Units | None, str]] = {
    "environment": (
        (-2, 2),
        "environment",
        "actions are in the environment's units: trained as [-1, 1], and mapped back",
    ),
    "scaled": ((-2, 2), "scaled", "actions are scaled: evaluations map [-1, 1] to the environment's [-2, 2]"),
    "unit": ((-1, 1), None, "actions lie in [-1, 1], as the environment's do"),
    "narrow": ((-0.7, 0.7), None, "actions are in the environment's units, and evaluations hold them to its bounds"),
    "infinite": ((-INF, INF), None, "actions reach the environment as they are: its bounds [-inf, inf] are not finite"),
}


@pytest.mark.parametrize(("bounds", "named", "words"), SAID.values(), ids=SAID)
def test_what_reaches_the_environment_is_said(tmp_path: Path, bounds, named, words):
    data = dataset.load(scored_in(*bounds), file(tmp_path / "a.hdf5", 0.6), action_units=named)
    assert data.acting.startswith(words)
