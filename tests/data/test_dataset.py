"""Reading data: what becomes a transition, and the exact words with which a data set is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_cases import FIELDS, columns, loads_within_three_times_its_arrays, put, refusal, spoiled, write
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from places import SHARED

from gtp_fast.data import dataset
from gtp_fast.data.catalog import resolve
from gtp_fast.errors import DataError, UsageError

SPEC = resolve("HalfCheetah-v5")


# ---- what becomes a transition


def test_the_successor_is_the_next_row_and_a_time_limit_without_one_is_left_out(tmp_path: Path):
    data = dataset.load(SPEC, write(tmp_path / "a.hdf5", columns(episodes=3, length=20)))
    assert len(data.obs_ND) == 3 * 19 and (data.next_obs_ND == data.obs_ND + 1).all()
    assert data.notes == ("left out 3 of 60 rows, which end an episode and have no successor",)


def test_time_limits_are_not_terminals(tmp_path: Path):
    assert not dataset.load(SPEC, write(tmp_path / "a.hdf5", columns())).terminal_N.any()


def test_next_observations_keep_the_last_transition(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", next_observations=columns()["observations"] + 0.5)
    data = dataset.load(SPEC, path)
    assert len(data.obs_ND) == 60 and (data.next_obs_ND == data.obs_ND + 0.5).all() and data.notes == ()


def test_next_observations_that_reach_into_the_next_episode_are_left_out(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", next_observations=np.roll(columns()["observations"], -1, axis=0))
    data = dataset.load(SPEC, path)
    assert len(data.obs_ND) == 58  # two ends lead into another episode; the last row's successor is its own


def test_the_last_observation_of_each_episode_keeps_its_last_transition(tmp_path: Path):
    last = np.full((3, 17), [[100.0], [200.0], [300.0]], dtype=np.float32)
    data = dataset.load(SPEC, spoiled(tmp_path / "a.hdf5", **{"infos/final_observations": last}))
    assert len(data.obs_ND) == 60 and data.next_obs_ND[[19, 39, 59], 0].tolist() == [100.0, 200.0, 300.0]


def test_a_terminal_row_is_kept_without_a_successor(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", terminals=put(19, True), timeouts=put(19, False))
    data = dataset.load(SPEC, path)
    assert np.flatnonzero(data.terminal_N).tolist() == [19] and (data.next_obs_ND[19] == data.obs_ND[19]).all()


def test_a_piece_after_the_last_end_loses_its_last_row_only_and_counts_as_no_episode(tmp_path: Path):
    data = dataset.load(SPEC, spoiled(tmp_path / "a.hdf5", timeouts=put(59, False), rewards=put(59, 1000.0)))
    assert len(data.obs_ND) == 57 and (data.episodes, data.return_mean, data.return_std) == (2, 20.0, 0.0)


def test_columns_of_one_and_other_number_types_are_accepted(tmp_path: Path):
    values = columns()
    changed = values | {
        "observations": values["observations"].astype(np.float64),
        "rewards": values["rewards"][:, None].astype(np.float64),
        "terminals": values["terminals"][:, None].astype(np.float32),
        "timeouts": values["timeouts"].astype(np.uint8),
    }
    a = dataset.load(SPEC, write(tmp_path / "a.hdf5", values))
    b = dataset.load(SPEC, write(tmp_path / "b.hdf5", changed))
    for key in FIELDS:
        assert np.array_equal(getattr(a, key), getattr(b, key)) and getattr(a, key).dtype == getattr(b, key).dtype


def test_clipping_is_counted_and_told(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", actions=put((slice(4, 6), 2), 1.5))
    data = dataset.load(SPEC, path, clip_actions=True)
    assert data.clipped == 2 and np.abs(data.action_NA).max() <= 1.0
    assert "clipped 2 action values into [-1, 1]" in data.notes


def test_unmarked_jumps_of_an_ant_end_an_episode(tmp_path: Path):
    values = columns(episodes=2, length=20, sizes=(29, 8))
    values["observations"] *= 0.01
    values["observations"][10:, :2] += 7.0
    data = dataset.load(resolve("antmaze-umaze-v0"), write(tmp_path / "a.hdf5", values))
    assert np.abs(data.next_obs_ND - data.obs_ND).max() < 1.0 and len(data.obs_ND) == 37
    assert data.notes[0] == "1 episode ends were not marked and were found by jumps over 1 m"


def test_a_file_under_a_published_name_that_is_not_the_published_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    path = write(tmp_path / "halfcheetah_medium-v2.hdf5", columns())
    data = dataset.load(resolve("halfcheetah-medium-v2"))
    assert data.source == str(path)
    assert any("is not the published halfcheetah-medium-v2" in note for note in data.notes)


@given(ends=st.lists(st.sampled_from(["", "terminal", "timeout"]), min_size=2, max_size=40), final=st.booleans())
def test_no_transition_crosses_an_episode_end(tmp_path: Path, ends: list[str], final: bool):
    ends[0] = "timeout"
    rows = len(ends)
    episode = np.cumsum([0, *(bool(end) for end in ends[:-1])])
    values = columns(episodes=1, length=rows)
    values["observations"][:] = episode[:, None]
    values["terminals"] = np.array([end == "terminal" for end in ends])
    values["timeouts"] = np.array([end == "timeout" for end in ends])
    if final:
        number = sum(map(bool, ends))
        values["infos/final_observations"] = np.repeat(np.arange(number, dtype=np.float32)[:, None], 17, axis=1)
    without = sum(end == "timeout" for end in ends) * (not final) + (ends[-1] == "")
    assume(without < rows)
    data = dataset.load(SPEC, write(tmp_path / "a.hdf5", values))
    assert np.array_equal(data.obs_ND, data.next_obs_ND)
    assert len(data.obs_ND) == rows - without


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample files are not beside this checkout")
def test_a_real_file_keeps_every_transition():
    data = dataset.load(resolve("Hopper-v5"), SHARED / "hopper_medium.hdf5")
    assert (len(data.obs_ND), data.episodes, data.notes) == (200_373, 450, ())
    assert data.return_mean == pytest.approx(1412.30859375, abs=1e-2)


# ---- what is refused, in the words that the user sees


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "missing keys": (
        {"rewards": None, "terminals": None, "timeouts": None},
        "FILE has no rewards, terminals, timeouts; it holds actions, observations; D4RL's layout needs observations, "
        "actions, rewards, terminals and timeouts",
    ),
    "unequal lengths": (
        {"actions": np.zeros((59, 6), np.float32)},
        "FILE: actions has 59 rows but observations has 60; every array needs one row per transition",
    ),
    "no rows": (
        {key: value[:0] for key, value in columns().items()},
        "FILE: observations has no rows; write at least one episode",
    ),
    "wrong rank": (
        {"observations": np.zeros((60, 17, 1), np.float32)},
        "FILE: observations has shape (60, 17, 1), expected 2 axes; write it as (N, size)",
    ),
    "wrong rank of rewards": (
        {"rewards": np.zeros((60, 2), np.float32)},
        "FILE: rewards has shape (60, 2), expected 1 axes; write it as (N,)",
    ),
    "no axis at all": (
        {"observations": np.float32(1)},
        "FILE: observations has shape (), expected 2 axes; write it as (N, size)",
    ),
    "wrong type": (
        {"observations": np.full((60, 17), b"x")},
        "FILE: observations holds |S1, expected numbers; write it as float32",
    ),
    "wrong type of terminals": (
        {"terminals": np.full(60, b"x")},
        "FILE: terminals holds |S1, expected booleans; write it as bool",
    ),
    "terminals that are no flags": (
        {"terminals": np.full(60, 0.5)},
        "FILE: terminals in row 0 holds 0.5, expected 0 or 1; write it as bool",
    ),
    "NaN": (
        {"observations": put((7, 3), np.nan)},
        "FILE: observations in row 7 holds nan; remove that episode, or fetch the file again",
    ),
    "Inf": (
        {"rewards": put(41, -np.inf)},
        "FILE: rewards in row 41 holds -inf; remove that episode, or fetch the file again",
    ),
    "Inf in float32 only": (
        {"rewards": np.full(60, 1e300)},
        "FILE: rewards in row 0 holds inf; remove that episode, or fetch the file again",
    ),
    "NaN in next_observations": (
        {"next_observations": np.full((60, 17), np.nan)},
        "FILE: next_observations in row 0 holds nan; remove that episode, or fetch the file again",
    ),
    "actions outside the bounds": (
        {"actions": put((slice(5, 8), 1), 1.37)},
        "FILE: actions in row 5 reach 1.37, outside [-1, 1]; pass --clip-actions to clip them (3 values), or scale "
        "them when writing the file",
    ),
    "no episode end": (
        {"timeouts": np.zeros(60, bool)},
        "FILE: none of the 60 rows ends an episode (terminals and timeouts are all false); mark each episode's last "
        "row, so that no transition crosses into the next",
    ),
    "observation size": (
        {"observations": np.zeros((60, 11), np.float32)},
        "FILE: observations have 11 numbers, but HalfCheetah-v5 has 17; name the environment that the data came from "
        "with --env",
    ),
    "action size": (
        {"actions": np.zeros((60, 3), np.float32)},
        "FILE: actions have 3 numbers, but HalfCheetah-v5 has 6; name the environment that the data came from with "
        "--env",
    ),
    "next_observations of another size": (
        {"next_observations": np.zeros((60, 16), np.float32)},
        "FILE: next_observations has shape (60, 16), observations (60, 17); write both in the same shape",
    ),
    "last observations of other episodes": (
        {"infos/final_observations": np.zeros((7, 17), np.float32)},
        "FILE: infos/final_observations has shape (7, 17), but 3 rows end an episode and observations have 17 numbers; "
        "write one row per episode, or leave the key out",
    ),
    "no transition left": (
        {"timeouts": np.ones(60, bool)},
        "FILE: no transition is left: each of the 60 rows ends an episode and has no successor; check terminals and "
        "timeouts",
    ),
}


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_single_number_for_last_observations_is_refused(tmp_path: Path, value: float):
    said = refusal(spoiled(tmp_path / "a.hdf5", **{"infos/final_observations": np.float32(value)}), SPEC)
    assert said.startswith("FILE: infos/final_observations " + ("in row 0 holds nan" if value != 1 else "has shape ()"))


def test_a_last_observation_of_no_episode_is_refused(tmp_path: Path):
    """As many rows as episodes and one are for a file whose last episode is unfinished."""
    last = np.zeros((4, 17), np.float32)
    unfinished = columns()["timeouts"]
    unfinished[-1] = False
    path = spoiled(tmp_path / "a.hdf5", **{"infos/final_observations": last[:3], "timeouts": unfinished})
    assert dataset.load(SPEC, path).episodes == 2
    said = refusal(spoiled(tmp_path / "a.hdf5", **{"infos/final_observations": last}), SPEC)
    assert said.startswith("FILE: infos/final_observations has shape (4, 17), but 3 rows end an episode")


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES.keys())
def test_a_wrong_column_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    assert refusal(spoiled(tmp_path / "a.hdf5", **changes), SPEC) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FILE does not exist; check the path, or leave --dataset out to use the named data set"),
        (b"", "FILE is empty (0 bytes); delete it and fetch or write it again"),
        (b"<html>404", "FILE is not an HDF5 file (it begins with b'<html>40'); name a D4RL-layout .hdf5 file"),
    ],
    ids=["absent", "empty", "no HDF5"],
)
def test_what_is_no_file_of_data_is_refused(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "a.hdf5").write_bytes(content)
    assert refusal(tmp_path / "a.hdf5", SPEC) == message


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float):
    path = write(tmp_path / "a.hdf5", columns())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = refusal(path, SPEC)
    assert message.startswith("FILE is truncated or damaged: it cannot be read to its end (")
    assert message.endswith("delete it and fetch or write it again")


def test_a_damaged_block_is_refused(tmp_path: Path):
    path, values = tmp_path / "a.hdf5", columns()
    with h5py.File(path, "w") as file:
        for key, value in values.items():
            file.create_dataset(key, data=value, compression="gzip", chunks=True)
        where = file["observations"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[where + 10 : where + 30] = bytes(20)
    path.write_bytes(content)
    assert refusal(path, SPEC).startswith("FILE is truncated or damaged")


def test_a_file_that_declares_more_than_the_memory_is_refused_before_any_is_taken(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", columns() | {"observations": None})
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", shape=(10**13, 17), dtype="f4", chunks=(1000, 17))
    assert "observations declares shape (10000000000000, 17), 680,000 GB in memory" in refusal(path, SPEC)


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_an_altered_byte_gives_transitions_or_a_typed_error(tmp_path: Path, place: float, bits: int):
    path = write(tmp_path / "a.hdf5", columns())
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= bits
    path.write_bytes(content)
    try:
        data = dataset.load(SPEC, path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(data.obs_ND).all() and np.abs(data.action_NA).max() <= 1.0


def test_an_environment_without_data_asks_for_them():
    with pytest.raises(UsageError, match=re.escape("pass its data with --dataset PATH")):
        dataset.load(resolve("Hopper-v5"))


def test_reading_a_large_file_takes_less_than_three_times_its_arrays(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", columns(episodes=100, length=1000))
    assert loads_within_three_times_its_arrays(lambda: dataset.load(SPEC, path))
