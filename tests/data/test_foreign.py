"""A file of another format is known by its content, and refused with the way to one that is read."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import columns, paste, refusal, write
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast.data import dataset, foreign
from gtp_fast.data.catalog import resolve
from gtp_fast.data.check import check
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import DataError, UsageError

ANY = DataSpec("mine", "file")
READ = (
    "--dataset reads HDF5 in D4RL's layout, a directory of such files, a Minari directory or id, and OGBench's own .npz"
)


def test_arrays_of_ones_own_in_an_npz_are_converted_by_the_lines_of_the_refusal(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, **columns())
    said = refusal(path, resolve("HalfCheetah-v5"))
    keys = "actions, observations, rewards, terminals, timeouts"
    assert said.startswith(f"FILE is a NumPy archive of {keys}, not one of OGBench's; {READ}; convert it:\n")
    paste(said, path)
    assert dataset.load(ANY, path.with_suffix(".hdf5")).episodes == 3


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"observations": np.zeros((3, 2))}))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mine/a.hdf5", b"x")


def saved(path: Path) -> None:
    torch.save({"observations": torch.zeros(3, 2)}, path)


def listed(path: Path) -> None:
    path.write_text(json.dumps({"observations": [[0.0]]}))


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 2)))


KINDS: dict[str, tuple[Any, str]] = {
    "csv": (
        lambda path: path.write_text("obs_0,act_0,reward\n1,2,3\n"),
        "a table of text (CSV) with the columns obs_0, ",
    ),
    "tabs": (
        lambda path: path.write_text('"obs 0"\treward\n1\t2\n'),
        "a table of text (CSV) with the columns obs 0, reward; ",
    ),
    "parquet": (lambda path: path.write_bytes(b"PAR1" + bytes(90)), "a Parquet file; "),
    "pickle": (pickled, "a Python pickle and loading it could run code, so it is never loaded here; "),
    "torch": (saved, "a file of torch.save, which holds a pickle, and loading it could run code"),
    "zip": (zipped, "a zip archive of mine/a.hdf5; "),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "compressed by gzip; "),
    "json": (listed, "JSON text; "),
    "npy": (one_array, "one NumPy array (.npy); "),
}


@pytest.mark.parametrize("suffix", [".hdf5", ".csv", ".pkl", ".npz", ""])
@pytest.mark.parametrize(("make", "said"), KINDS.values(), ids=KINDS.keys())
def test_a_file_is_named_by_its_content_whatever_its_suffix(tmp_path: Path, make: Any, said: str, suffix: str):
    path = tmp_path / f"a{suffix}"
    make(path)
    told = refusal(path, ANY)
    assert told.startswith(f"FILE is {said}") and READ in told
    assert check(path)["faults"][0]["message"].replace(str(path), "FILE") == told


def test_nothing_of_a_pickle_is_loaded(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap()))
    refusal(tmp_path / "a.pkl", ANY)
    assert not (tmp_path / "sprung").exists()


def test_data_under_the_other_ones_suffix_are_told_to_be_renamed(tmp_path: Path):
    write(tmp_path / "a.hdf5", columns()).rename(tmp_path / "a.npz")
    assert refusal(tmp_path / "a.npz", ANY) == "FILE is HDF5 by its content, whatever its name; rename it to a.hdf5"
    np.savez(tmp_path / "b.npz", observations=np.zeros((2, 2)), qpos=np.zeros((2, 2)), terminals=np.zeros(2))
    (tmp_path / "b.npz").rename(tmp_path / "b.hdf5")
    assert refusal(tmp_path / "b.hdf5", ANY) == "FILE is an OGBench file by its content; rename it to b.npz"


def test_a_directory_without_data_says_what_it_holds(tmp_path: Path):
    for number in range(20):
        (tmp_path / f"{number:02}.csv").touch()
    (tmp_path / "sub").mkdir()
    assert refusal(tmp_path, ANY).startswith(
        "FILE is not a Minari data set (it has no data/metadata.json) and has no *.hdf5 file; it holds 00.csv, 01.csv, "
    )
    assert " and 9 more; " in refusal(tmp_path, ANY)


@given(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"", b"PK\x03\x04", b"PAR1", b"\x80\x04", b"a,b\n", b"\x1f\x8b"]),
)
def test_any_bytes_are_data_or_a_typed_error(tmp_path: Path, rest: bytes, first: bytes):
    for suffix in (".hdf5", ".npz"):
        (tmp_path / f"a{suffix}").write_bytes(first + rest)
        with pytest.raises((DataError, UsageError)) as error:
            dataset.load(ANY, tmp_path / f"a{suffix}")
        assert str(tmp_path) in str(error.value)
    assert foreign.is_ogbench(tmp_path / "a.npz") is False
