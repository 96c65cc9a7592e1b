"""OGBench's files: the pairs and rewards are the package's own, and a damaged file is refused by name."""

from __future__ import annotations

import io
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import ogbench
import ogbench_cases
import pytest
from data_cases import loads_within_three_times_its_arrays, put, refusal
from families import family
from hypothesis import given, settings
from hypothesis import strategies as st
from ogbench_cases import columns, spoiled, write

from gtp_fast.data import dataset
from gtp_fast.data import ogbench as ogbench_data
from gtp_fast.data.catalog import resolve
from gtp_fast.data.check import check
from gtp_fast.errors import DataError, GtpError, UsageError

NAME = "cube-single-play-singletask-v0"
SPEC = resolve(NAME)
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered", "ignore:.*DISPLAY")  # of OGBench's environments
needs_real = pytest.mark.skipif(
    not ogbench_cases.REAL.is_file(), reason="the sample files are not beside this checkout"
)


def is_the_packages_own(name: str, path: Path) -> None:
    """Hold what is read to ogbench's make_env_and_datasets, value for value."""
    shutil.copy(path, path.with_name(f"{path.stem}-val.npz"))
    _, theirs, _ = ogbench.make_env_and_datasets(name, dataset_path=str(path))
    ours = dataset.load(resolve(name), path)
    assert np.array_equal(ours.obs_ND, theirs["observations"])
    assert np.array_equal(ours.next_obs_ND, theirs["next_observations"])
    assert np.array_equal(ours.action_NA, theirs["actions"])
    assert np.array_equal(ours.reward_N, theirs["rewards"]) and ours.reward_N.dtype == np.float32
    assert np.array_equal(~ours.terminal_N, theirs["masks"])


@needs_real
@pytest.mark.parametrize("task", family(["", *(f"-task{i}" for i in range(1, 6))], quick=["", "-task4"]))
def test_real_trajectories_are_paired_and_rewarded_as_the_package_does(tmp_path: Path, task: str):
    shutil.copy(ogbench_cases.REAL, tmp_path / "real.npz")
    is_the_packages_own(f"cube-single-play-singletask{task}-v0", tmp_path / "real.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, "cube-double-play-singletask-v0"])
def test_written_trajectories_are_paired_and_rewarded_as_the_package_does(tmp_path: Path, name: str):
    path = write(tmp_path / "written.npz", columns(obs_dim=int(resolve(name).obs_dim or 0)))
    is_the_packages_own(name, path)
    assert dataset.load(resolve(name), path).terminal_N.any()


@pytest.mark.slow
@pytest.mark.parametrize("stem", ogbench_data.GOALS_M)
def test_the_goals_are_the_packages(stem: str):
    import gymnasium

    env = gymnasium.make(f"{stem}-singletask-v0").unwrapped
    theirs = [task["goal_xyzs"] for task in env.task_infos]  # type: ignore[attr-defined]
    assert np.array_equal(np.array(ogbench_data.GOALS_M[stem]), theirs)
    assert env._reward_task_id == ogbench_data.DEFAULT_TASK  # type: ignore[attr-defined]
    env.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "qpos", "buttons"),
    [
        ("puzzle-3x3-play", 30, 9),
        ("scene-play", 25, 2),
        ("pointmaze-medium-navigate", 2, 0),
    ],
)
def test_other_families_are_rewarded_by_the_package_itself(tmp_path: Path, name: str, qpos: int, buttons: int):
    spec, values = resolve(f"{name}-singletask-v0"), columns()
    rows = len(values["observations"])
    values |= {"observations": np.tile(np.arange(rows)[:, None], spec.obs_dim or 0)}
    values |= {"actions": np.zeros((rows, spec.action_dim or 0))}
    values |= {"qpos": np.random.default_rng(0).uniform(0, 20, (rows, qpos))}
    values |= {"button_states": np.ones((rows, buttons), np.int64)} if buttons else {}
    is_the_packages_own(spec.name, write(tmp_path / "other.npz", values))


def test_no_transition_crosses_the_end_of_a_trajectory(tmp_path: Path):
    data = dataset.load(SPEC, write(tmp_path / "a.npz"))
    assert len(data.obs_ND) == 60 and (data.next_obs_ND == data.obs_ND + 1).all()
    assert data.notes[0].startswith("3 trajectories, rewarded for the task: ")


def test_a_cube_succeeds_within_4_cm_and_the_reward_counts_those_that_do_not(tmp_path: Path):
    one = dataset.load(SPEC, write(tmp_path / "a.npz"))
    away = np.tile(np.linspace(0.1, 0.0, 21)[:-1], 3)
    clear = np.abs(away - 0.04) > 1e-6  # float32 decides at the very edge
    assert np.array_equal(one.terminal_N[clear], away[clear] < 0.04)
    assert np.array_equal(one.reward_N, np.where(one.terminal_N, 0, -1))
    two = dataset.load(resolve("cube-double-play-singletask-v0"), write(tmp_path / "b.npz", columns(obs_dim=37)))
    assert set(two.reward_N) == {-2, -1, 0} and np.array_equal(two.reward_N == 0, two.terminal_N)


def test_the_end_of_a_trajectory_bootstraps(tmp_path: Path):
    path = spoiled(tmp_path / "a.npz", qpos=np.zeros((63, 21), np.float32))
    data = dataset.load(SPEC, path)
    assert not data.terminal_N.any() and data.episodes == 3 and data.return_mean == -20


def test_frames_stay_bytes_in_the_files_own_rows(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (63, 64, 64, 3), dtype=np.uint8)
    path = spoiled(tmp_path / "a.npz", observations=frames)
    found = ogbench_data.read(path, resolve(f"visual-{NAME}"))
    assert np.array_equal(found.obs, frames) and found.obs.dtype == np.uint8 and found.next_obs is None
    assert np.flatnonzero(found.timeout).tolist() == [20, 41, 62] and not found.terminal[found.timeout].any()


def test_the_papers_names_are_read_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    assert len(dataset.load(resolve("cube-single"), write(tmp_path / "a.npz")).obs_ND) == 60


def test_other_families_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    path = spoiled(tmp_path / "a.npz", observations=np.zeros((63, 29)))
    with pytest.raises(DataError, match=r"antmaze-medium are computed by OGBench.*pip install 'gtp-fast\[ogbench\]'"):
        dataset.load(resolve("antmaze-medium-navigate-singletask-v0"), path)


def test_an_environments_own_id_names_the_task_of_a_file_of_ones_own(tmp_path: Path):
    path = write(tmp_path / "mine.npz")
    by_name, by_id = (dataset.load(resolve(name), path) for name in (NAME, "ogbench:cube-single-singletask-v0"))
    assert np.array_equal(by_name.reward_N, by_id.reward_N)


def test_reading_takes_less_than_three_times_the_arrays(tmp_path: Path):
    path = write(tmp_path / "a.npz", columns(trajectories=100, length=1000))
    assert loads_within_three_times_its_arrays(lambda: dataset.load(SPEC, path))


# ---- what is refused


CHANGES = {
    "no observations": ({"observations": None}, "FILE has no observations; it holds actions, qpos, qvel, terminals;"),
    "no qpos": ({"qpos": None}, "FILE has no qpos; it holds actions, observations, qvel, terminals; fetch OGBench's"),
    "unequal rows": (
        {"actions": np.zeros((5, 5))},
        "FILE: rows are observations 63, actions 5, terminals 63, qpos 63;",
    ),
    "no rows": (
        {key: value[:0] for key, value in columns().items()},
        "FILE: rows are observations 0, actions 0, terminals 0, qpos 0; every array needs one",
    ),
    "words": ({"actions": np.full((63, 5), "left")}, "FILE: actions holds <U4, expected numbers"),
    "objects": ({"actions": np.full((63, 5), None)}, "FILE: actions holds object, expected numbers"),
    "flat observations": ({"observations": np.zeros(63)}, "FILE: observations has shape (63,), expected 2 or 4 axes"),
    "two cubes": (
        {"observations": np.zeros((63, 37), np.float32)},
        f"FILE: observations have shape (37,) of float32, but {NAME} has (28,) of float32; name the task",
    ),
    "another body": ({"qpos": np.zeros((63, 28))}, "FILE: qpos has shape (63, 28), expected (N, 21) of cube-single;"),
    "nan": ({"observations": put(7, np.nan)}, "FILE: observations in row 7 holds nan;"),
    "nan in the state": ({"qpos": put(7, np.nan)}, "FILE: qpos in row 7 is not finite; fetch the file again"),
    "large actions": ({"actions": np.full((63, 5), 1.5)}, "FILE: actions in row 0 reach 1.5, outside [-1, 1];"),
    "odd flags": ({"terminals": np.full(63, 0.5)}, "FILE: terminals in row 0 holds 0.5, expected 0 or 1;"),
    "cut rows": ({"terminals": np.zeros(63, bool)}, "FILE: its last row ends no trajectory (terminals is 0 there);"),
}


@pytest.mark.parametrize(("changes", "said"), CHANGES.values(), ids=CHANGES.keys())
def test_a_spoiled_file_is_refused_by_file_and_key(tmp_path: Path, changes: dict[str, object], said: str):
    assert refusal(spoiled(tmp_path / "a.npz", **changes), SPEC).startswith(said)


def test_an_array_that_declares_more_than_it_has_is_refused_before_it_is_read(tmp_path: Path):
    path, header = write(tmp_path / "a.npz", columns() | {"observations": None}), io.BytesIO()
    declared = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 28)}
    np.lib.format.write_array_header_1_0(header, declared)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", header.getvalue() + bytes(400))
    assert refusal(path, SPEC) == (
        "FILE: observations declares shape (1000000000000, 28) of float32, 112,000,000,000,000 bytes, and has 400; "
        "delete the file and fetch it again"
    )


def test_a_header_that_is_cut_into_no_tokens_is_refused(tmp_path: Path):
    path, header = write(tmp_path / "a.npz", columns() | {"observations": None}), b"{'shape': (63, 28), "
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(
        DataError, match=r"a.npz: observations cannot be read \(.*\); delete the file and fetch it again"
    ):
        dataset.load(SPEC, path)


@pytest.mark.parametrize(("at", "value"), [(6, 200), (9, 8)], ids=["of a later version", "with names of no text"])
def test_an_archive_with_another_directory_is_refused(tmp_path: Path, at: int, value: int):
    path = write(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + at] = value
    content[entry + 46] = 0xFF  # the first byte of the name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz cannot be read as an npz archive \(.*; delete it and fetch it again"):
        dataset.load(SPEC, path)


def test_arrays_larger_than_the_machine_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "a.npz")
    monkeypatch.setattr("os.sysconf", lambda _: 64)  # 4,096 bytes of memory
    with pytest.raises(DataError, match=r"a.npz: its arrays declare .* GB, and this machine has"):
        dataset.load(SPEC, path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04 and nothing more"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path} cannot be read as an npz archive ({len(content)} bytes;")):
        dataset.load(SPEC, path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'none.npz'} does not exist")):
        dataset.load(SPEC, tmp_path / "none.npz")


def test_a_file_without_a_task_asks_for_one(tmp_path: Path):
    path = write(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="which is rewarded for a task, and 'Hopper-v5' names none; pass --env cube-"):
        dataset.load(resolve("Hopper-v5"), path)
    with pytest.raises(UsageError, match=r"and 'a\.npz' names none"):
        check(path)


@settings(max_examples=100)
@given(where=st.integers(0, 20_000), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_byte_is_refused_or_harmless(tmp_path: Path, where: int, value: int, cut: bool):
    path = write(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    place = where % len(content)
    content[place] = value
    path.write_bytes(content[:place] if cut else content)
    try:
        data = dataset.load(SPEC, path)
    except GtpError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(data.obs_ND).all() and np.abs(data.action_NA).max() <= 1.0
