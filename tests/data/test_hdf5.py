"""A data set in several files is the files behind one another, and nothing crosses from one into the next."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from data_cases import FIELDS, columns, put, refusal, spoiled, write

from gtp_fast.data import dataset
from gtp_fast.data.catalog import resolve
from gtp_fast.data.spec import DataSpec

SPEC = resolve("HalfCheetah-v5")


def test_shards_are_the_file_that_was_cut_between_episodes(tmp_path: Path):
    values = columns(episodes=5, length=20)
    whole = dataset.load(SPEC, write(tmp_path / "whole.hdf5", values))
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, rows in (("b", slice(40, 100)), ("a", slice(0, 40))):
        write(folder / f"{name}.hdf5", {key: value[rows] for key, value in values.items()})
    data = dataset.load(SPEC, folder)
    assert all(np.array_equal(getattr(data, name), getattr(whole, name)) for name in FIELDS)
    assert (data.episodes, data.return_mean, data.source) == (5, 20.0, str(folder))
    assert data.notes[0] == "2 shards, in the order of their names" and data.sha256 != whole.sha256


def test_one_shard_is_the_file_alone(tmp_path: Path):
    alone = dataset.load(SPEC, write(tmp_path / "a.hdf5", columns()))
    assert dataset.load(SPEC, tmp_path).sha256 == alone.sha256


def test_the_hash_is_of_content_and_order(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns())
    write(tmp_path / "b.hdf5", columns(episodes=4))
    first = dataset.load(SPEC, tmp_path).sha256
    (tmp_path / "a.hdf5").rename(tmp_path / "c.hdf5")
    assert dataset.load(SPEC, tmp_path).sha256 != first


@pytest.mark.parametrize("last", [False, True], ids=["without", "with last observations"])
def test_the_rows_after_a_shards_last_end_are_left_out_and_said(tmp_path: Path, last: bool):
    values = columns()
    values["timeouts"][59] = False
    if last:
        values["infos/final_observations"] = np.full((3, 17), 7.0, np.float32)  # the unfinished episode has one, too
    write(tmp_path / "a.hdf5", values)
    values = columns() | ({"infos/final_observations": np.full((3, 17), 9.0, np.float32)} if last else {})
    write(tmp_path / "b.hdf5", values)
    data = dataset.load(SPEC, tmp_path)
    assert data.episodes == 2 + 3 and len(data.obs_ND) == (100 if last else 100 - 5)
    assert f"left out 20 of 60 rows of {tmp_path / 'a.hdf5'}, after its last episode end" in data.notes


def test_a_fault_names_the_shard_and_the_row_in_it(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns())
    spoiled(tmp_path / "b.hdf5", rewards=put(41, np.nan))
    assert refusal(tmp_path, SPEC).startswith("FILE/b.hdf5: rewards in row 41 holds nan; ")


def test_a_shard_of_another_width_is_refused(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns(sizes=(4, 2)))
    write(tmp_path / "b.hdf5", columns(sizes=(5, 2)))
    message = refusal(tmp_path, DataSpec("mine", "file"))
    assert "b.hdf5: observations have 5 numbers, but 4 in the first shard" in message


def test_a_shard_with_other_keys_is_refused(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns())
    write(tmp_path / "b.hdf5", columns() | {"next_observations": columns()["observations"]})
    assert refusal(tmp_path, SPEC).startswith("FILE/b.hdf5 has next_observations, unlike the first shard; ")


def test_shards_beside_other_data_are_refused(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns())
    (tmp_path / "b.npz").touch()
    assert refusal(tmp_path, SPEC) == "FILE holds *.hdf5 shards and b.npz; move one of them to another directory"


def test_shards_in_a_minari_directory_are_refused(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns())
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data/main_data.hdf5", "w"):
        pass
    assert "data/main_data.hdf5, which is Minari's" in refusal(tmp_path, SPEC)


def test_an_empty_directory_is_refused(tmp_path: Path):
    assert refusal(tmp_path, SPEC).startswith("FILE is not a Minari data set")
