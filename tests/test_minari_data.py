"""Minari data sets, made here by Minari's own writer."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from gtp_fast import dataset
from gtp_fast.catalog import resolve
from gtp_fast.data_spec import DataSpec
from gtp_fast.errors import DataError

NAME = "mujoco/halfcheetah/medium-v0"
ANY = DataSpec("any", "file")
BOX, UNIT = Box(-100, 100, (4,), np.float32), Box(-1, 1, (2,), np.float32)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of metadata that these sets leave out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def collect(
    name: str, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], terminal: bool = True
) -> Path:
    """Write three episodes of five random actions; observations that are boxes count the steps."""
    actions.seed(0)
    last = [False] * 4 + [True]
    if isinstance(observations, Box):
        seen: Any = np.stack([np.full(observations.shape, t, np.float32) for t in range(6)])
    else:
        seen = {key: np.zeros((6, 2), np.float32) for key in observations}  # type: ignore[attr-defined]
    buffers = [
        EpisodeBuffer(
            id=episode,
            observations=seen,
            actions=np.stack([actions.sample() for _ in last]),
            rewards=[1.0 for _ in last],
            terminations=last if terminal else [False for _ in last],
            truncations=[False for _ in last] if terminal else last,
        )
        for episode in range(3)
    ]
    minari.create_dataset_from_buffers(name, buffers, observation_space=observations, action_space=actions)
    return minari.storage.get_dataset_path(name)


def test_a_set_is_read_by_its_name_from_minaris_own_cache(cache: Path):
    collect(NAME, Box(-100, 100, (17,), np.float32), Box(-1, 1, (6,), np.float32), terminal=False)
    data = dataset.load(resolve(NAME))
    assert (len(data.obs_ND), data.episodes, data.source, data.notes) == (15, 3, f"minari:{NAME}", ())
    assert not data.terminal_N.any() and data.obs_ND.dtype == data.action_NA.dtype == np.float32


def test_episodes_keep_their_last_transition_and_do_not_mix(cache: Path):
    data = dataset.load(ANY, collect("walk/box-v0", BOX, UNIT))
    assert data.obs_ND[:, 0].tolist() == [0, 1, 2, 3, 4] * 3 and (data.next_obs_ND == data.obs_ND + 1).all()
    assert np.flatnonzero(data.terminal_N).tolist() == [4, 9, 14] and data.return_mean == 5.0


def test_actions_outside_the_bounds_are_refused(cache: Path):
    path = collect("walk/wide-v0", BOX, Box(-2, 2, (2,), np.float32))
    with pytest.raises(DataError, match=r"wide-v0: actions in row \d+ reach -?1\.\d+, outside \[-1, 1\]; pass --clip"):
        dataset.load(ANY, path)


REFUSED = {
    "discrete actions": (BOX, Discrete(3), "actions are in a Discrete space"),
    "dictionary observations": (Dict({"goal": UNIT, "here": UNIT}), UNIT, "observations are in a Dict space"),
    "grids": (Box(0, 100, (3, 5), np.float32), UNIT, "observations are in a Box space of shape (3, 5)"),
}


@pytest.mark.parametrize(("observations", "actions", "seen"), REFUSED.values(), ids=REFUSED.keys())
def test_other_spaces_than_vectors_are_refused(
    cache: Path, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], seen: str
):
    path = collect("walk/other-v0", observations, actions)
    with pytest.raises(DataError) as error:
        dataset.load(ANY, path)
    assert str(error.value) == (
        f"{path}: {seen}, expected a Box of one axis; this version trains on vectors of numbers only: flatten them "
        "when writing the data set, or choose another"
    )


def test_another_environments_sizes_are_refused(cache: Path):
    collect(NAME, BOX, UNIT)
    with pytest.raises(DataError, match=f"{NAME}: observations have 4 numbers, but {NAME} has 17"):
        dataset.load(resolve(NAME))


@pytest.mark.parametrize("file", ["main_data.hdf5", "metadata.json"])
def test_a_truncated_collection_is_refused(cache: Path, file: str):
    path = collect("walk/box-v0", BOX, UNIT)
    whole = (path / "data" / file).read_bytes()
    (path / "data" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot be read as a Minari data set.*delete it and download it again"):
        dataset.load(ANY, path)


def test_a_folder_that_is_no_collection_is_refused(tmp_path: Path):
    with pytest.raises(DataError) as error:
        dataset.load(ANY, tmp_path)
    assert str(error.value) == (
        f"{tmp_path} is no Minari data set (no data/main_data.hdf5); name its directory, or an .hdf5 file"
    )


def test_without_a_network_it_fails_in_seconds_and_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(DataError, match=re.escape(f"run `minari download {NAME}` where there is a network")):
        dataset.load(resolve(NAME))
    assert time.monotonic() - began < 10
