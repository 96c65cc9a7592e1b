"""Minari data sets, made here by Minari's own writer."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector.utils import batch_space, iterate
from minari.data_collector import EpisodeBuffer
from minari_cases import BOX, UNIT, collect

from gtp_fast.data import dataset
from gtp_fast.data.catalog import resolve
from gtp_fast.data.check import check
from gtp_fast.data.spec import DataSpec, with_references
from gtp_fast.errors import DataError

NAME = "mujoco/halfcheetah/medium-v0"
HALFCHEETAH = Box(-100, 100, (17,), np.float32), Box(-1, 1, (6,), np.float32)
ANY = DataSpec("any", "file")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of metadata that these sets leave out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_a_set_is_read_by_its_name_from_minaris_own_cache(cache: Path):
    collect(NAME, *HALFCHEETAH, terminal=False)
    data = dataset.load(resolve(NAME))
    assert (len(data.obs_ND), data.episodes, data.source, data.notes) == (15, 3, f"minari:{NAME}", ())
    assert not data.terminal_N.any() and data.obs_ND.dtype == data.action_NA.dtype == np.float32


def test_episodes_keep_their_last_transition_and_do_not_mix(cache: Path):
    data = dataset.load(ANY, collect("walk/box-v0", BOX, UNIT))
    assert data.obs_ND[:, 0].tolist() == [0, 1, 2, 3, 4] * 3 and (data.next_obs_ND == data.obs_ND + 1).all()
    assert np.flatnonzero(data.terminal_N).tolist() == [4, 9, 14] and data.return_mean == 5.0


def test_rows_are_those_that_minari_itself_reads(cache: Path):
    path = collect("walk/box-v0", BOX, UNIT)
    data = dataset.load(ANY, path)
    episodes = list(minari.load_dataset("walk/box-v0").iterate_episodes())
    assert np.array_equal(data.obs_ND, np.concatenate([e.observations[:-1] for e in episodes]))
    assert np.array_equal(data.next_obs_ND, np.concatenate([e.observations[1:] for e in episodes]))
    assert np.array_equal(data.action_NA, np.concatenate([e.actions for e in episodes]))
    assert np.array_equal(data.reward_N, np.concatenate([e.rewards for e in episodes]).astype(np.float32))
    assert np.array_equal(data.terminal_N, np.concatenate([e.terminations for e in episodes]))


PARTS = {
    "goals": Dict({"observation": BOX, "achieved_goal": UNIT, "desired_goal": UNIT}),
    "an order of one's own": Dict(OrderedDict(z=UNIT, a=BOX)),
    "nested": Dict({"b": Tuple((Discrete(3, start=-1), Dict({"y": UNIT, "x": BOX}))), "a": MultiBinary(3)}),
    "choices": Tuple((MultiDiscrete([2, 3]), Discrete(4), UNIT)),
    "a grid": Box(0, 100, (3, 5), np.float32),
    "bytes": Box(0, 255, (3,), np.uint8),
}


@pytest.mark.parametrize("space", PARTS.values(), ids=PARTS.keys())
def test_observations_are_laid_out_as_gymnasium_flattens_them(cache: Path, space: gymnasium.Space[Any]):
    data = dataset.load(ANY, collect("walk/parts-v0", space, UNIT))
    kept = minari.load_dataset("walk/parts-v0")
    first = next(iter(kept.iterate_episodes()))
    one = iterate(batch_space(kept.observation_space, 6), first.observations)
    # The data's space has its keys in alphabetical order: JSON keeps no other.
    expected = np.stack([gymnasium.spaces.flatten(kept.observation_space, obs) for obs in one])
    assert np.array_equal(data.obs_ND[:5], expected[:-1].astype(np.float32))
    assert np.array_equal(data.next_obs_ND[4], expected[-1].astype(np.float32))


def test_the_order_of_parts_is_told(cache: Path):
    parts = PARTS["goals"].spaces | {"left": Discrete(9)}
    told = dataset.load(ANY, collect("walk/goals-v0", Dict(parts), UNIT)).notes
    assert told == ("observations are laid out as achieved_goal 2, desired_goal 2, left 9, observation 4: 17 numbers",)


def test_actions_of_wider_bounds_are_scaled_and_told(cache: Path):
    path = collect("walk/wide-v0", BOX, Box(np.float32([-2, -1]), np.float32([2, 3])))
    data = dataset.load(ANY, path)
    raw = np.concatenate([e.actions for e in minari.load_dataset("walk/wide-v0").iterate_episodes()])
    assert np.allclose(data.action_NA, raw / 2 - [0.0, 0.5], atol=1e-7) and np.abs(data.action_NA).max() <= 1
    assert data.action_bounds == ((-2.0, -1.0), (2.0, 3.0))
    assert data.acting == "actions are scaled: evaluations map [-1, 1] to the environment's [-2, 2], [-1, 3]"


def test_actions_of_narrower_bounds_are_as_they_were(cache: Path):
    data = dataset.load(ANY, collect("walk/narrow-v0", BOX, Box(-0.4, 0.4, (2,), np.float32)))
    assert np.abs(data.action_NA).max() <= 0.4 and data.notes == ()


def test_actions_without_bounds_are_refused_where_they_leave_the_unit_box(cache: Path):
    path = collect("walk/free-v0", BOX, Box(-np.inf, np.inf, (2,), np.float32))
    with pytest.raises(DataError, match=r"free-v0: actions in row \d+ reach -?\d\.\d+, outside \[-1, 1\]; pass --clip"):
        dataset.load(ANY, path)


def test_actions_that_leave_their_own_bounds_are_refused(cache: Path):
    wide = json.dumps(json.loads(minari.serialization.serialize_space(Box(-1.5, 1.5, (2,), np.float32))))
    path = collect("walk/wide-v0", BOX, Box(-2, 2, (2,), np.float32), action_space=wide)
    with pytest.raises(DataError, match=r"outside \[-1, 1\]"):
        dataset.load(ANY, path)


REFUSED = {
    "discrete": (BOX, Discrete(3), "actions are in a Discrete space, expected a Box of one axis"),
    "multi-discrete": (BOX, MultiDiscrete([2, 2]), "actions are in a MultiDiscrete space, expected a Box of one axis"),
    "grids of actions": (BOX, Box(-1, 1, (2, 2)), "actions are in a Box space of shape (2, 2), expected a Box of one"),
    "pictures": (
        Dict({"eye": Box(0, 255, (8, 8, 3), np.uint8), "a": BOX}),
        UNIT,
        "observations hold a Box of images",
    ),
    "words": (Dict({"mission": Text(5), "a": BOX}), UNIT, "observations hold a Text space; expected numbers"),
}


@pytest.mark.parametrize(("observations", "actions", "seen"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_policy_of_vectors_can_learn_is_refused(
    cache: Path, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], seen: str
):
    spaces = [minari.serialization.serialize_space(space) for space in (observations, actions)]
    path = collect("walk/other-v0", BOX, UNIT, observation_space=spaces[0], action_space=spaces[1])
    with pytest.raises(DataError) as error:
        dataset.load(ANY, path)
    assert str(error.value).startswith(f"{path}: {seen}") and "choose" in str(error.value)


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_no_environment_is_made_of_what_a_file_names(cache: Path, missing: str):
    spec = gymnasium.spec("HalfCheetah-v5").to_json()
    path = collect("walk/box-v0", BOX, UNIT, env_spec=spec, **{missing: None})
    with pytest.raises(DataError, match=f"declares no {missing}, and no environment is built"):
        dataset.load(ANY, path)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((-5.0, 20), (-5.0, 20.0)),
        ((1.0, None), None),
        ((3.0, 3.0), None),
        ((3.0, 1.0), None),
        ((0.0, float("nan")), None),
        ((False, True), None),
        (("0", "1"), None),
    ],
    ids=str,
)
def test_references_of_the_data_set_count_where_they_are_two_numbers_in_order(cache: Path, found: Any, expected: Any):
    path = collect("walk/box-v0", BOX, UNIT, ref_min_score=found[0], ref_max_score=found[1])
    data = dataset.load(ANY, path)
    assert data.references == expected
    assert [note for note in data.notes if "references" in note] == (
        ["scores use the data set's own references: 0 for a return of -5, 100 for 20"] if expected else []
    )


def test_the_catalogues_references_come_first(cache: Path):
    collect(NAME, *HALFCHEETAH, ref_min_score=0.0, ref_max_score=1.0)
    data = dataset.load(resolve(NAME))
    assert with_references(resolve(NAME), data.references) == resolve(NAME) and data.notes == ()


@pytest.mark.parametrize("name", ["walk/box-v0", "a/b/c/d/box-v12", "minari:box-v3", "minari:walk/box-v0"])
def test_any_id_is_a_name_of_data_alone_or_beside_an_environment(cache: Path, name: str):
    collect(name.removeprefix("minari:"), BOX, UNIT)
    spec = resolve(name)
    assert (spec.source, spec.eval_env) == ("minari", None)
    alone, beside = dataset.load(spec), dataset.load(resolve("my_module:Walk-v0"), Path(name))
    assert alone.source == beside.source == f"minari:{name.removeprefix('minari:')}"
    assert np.array_equal(alone.obs_ND, beside.obs_ND)


def test_a_misspelt_id_is_answered_with_the_nearest(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE is set.*did you mean mujoco/halfcheetah/medium-v0"):
        dataset.load(resolve("mujoco/halfchetah/medium-v0"))


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_minaris_other_formats_are_read_alike_or_name_their_package(cache: Path, data_format: str):
    path = collect("walk/goals-v0", PARTS["goals"], UNIT)
    expected, kept = dataset.load(ANY, path), minari.load_dataset("walk/goals-v0")
    if importlib.util.find_spec("pyarrow") is None:
        file = path / "data" / "metadata.json"
        file.write_text(file.read_text().replace('"hdf5"', f'"{data_format}"'))
        with pytest.raises(DataError, match="pip install pyarrow"):
            dataset.load(ANY, path)
        return
    buffers = [
        EpisodeBuffer(
            id=int(e.id),
            observations=e.observations,
            actions=e.actions,
            rewards=list(e.rewards),
            terminations=list(e.terminations),
            truncations=list(e.truncations),
        )
        for e in kept.iterate_episodes()
    ]
    minari.create_dataset_from_buffers(
        "walk/other-v0", buffers, observation_space=PARTS["goals"], action_space=UNIT, data_format=data_format
    )
    assert dataset.load(ANY, minari.storage.get_dataset_path("walk/other-v0")).sha256 == expected.sha256


def test_the_check_of_a_set_doubts_no_mark_that_its_reader_made(cache: Path):
    # An episode that ends as terminal ends for the reader, too: nobody wrote both marks.
    assert not any("both" in told["seen"] for told in check(collect("any-v0", BOX, UNIT), ANY)["warnings"])


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
        f"{tmp_path} is not a Minari data set (it has no data/metadata.json) and has no *.hdf5 file; it is empty; "
        "--dataset reads HDF5 in D4RL's layout, a directory of such files, a Minari directory or id, and OGBench's own "
        ".npz; docs/data.md, 'Your own data', has the recipes"
    )


def test_without_a_network_it_fails_in_seconds_and_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(DataError, match=re.escape(f"run `minari download {NAME}` where there is a network")):
        dataset.load(resolve(NAME))
    assert time.monotonic() - began < 10
