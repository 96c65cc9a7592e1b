"""A file that is nearly in D4RL's layout is refused with lines of Python that, pasted as they are, mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_cases import columns, paste, refusal, spoiled, write

from gtp_fast.cli.main import main
from gtp_fast.data import dataset
from gtp_fast.data.check import check
from gtp_fast.data.rules import FINAL_OBS
from gtp_fast.data.spec import DataSpec
from gtp_fast.data.transitions import Transitions

ANY = DataSpec("mine", "file")
ENDS = np.arange(1, 61) % 20 == 0


def mended(path: Path, said: str) -> Transitions:
    """Paste the lines of the refusal, and load the file."""
    paste(said, path)
    return dataset.load(ANY, path)


def episodes() -> dict[str, Any]:
    """Return three episodes of 20 rows that end as terminal, without timeouts."""
    return columns() | {"terminals": ENDS.copy(), "timeouts": None}


def successors(values: dict[str, Any]) -> np.ndarray:
    """Return the next observations; at an episode's end it is no row of the file."""
    obs = values["observations"]
    after = np.roll(obs, -1, axis=0)
    after[ENDS] = -1.0
    return after


# ---- no timeouts


@pytest.mark.parametrize("after", [False, True], ids=["alone", "with next_observations"])
def test_timeouts_may_be_missing_where_every_episode_ends_as_terminal(tmp_path: Path, after: bool):
    values = episodes()
    path = write(tmp_path / "a.hdf5", values | ({"next_observations": successors(values)} if after else {}))
    data = dataset.load(ANY, path)
    assert (len(data.obs_ND), data.episodes, int(data.terminal_N.sum())) == (60, 3, 3)
    assert data.notes == ("the file has no timeouts: every episode ends as terminal, none by a time limit",)
    assert check(path)["ready"] and data.notes[0] in check(path)["notes"]


def test_missing_timeouts_are_refused_where_the_last_row_is_not_terminal(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", episodes() | {"terminals": ENDS & (np.arange(60) < 50)})
    said = refusal(path, ANY)
    assert said.startswith(
        "FILE has no timeouts, and its last row is not terminal; mark the last row of each episode that a time limit "
        "ended (in lengths put the rows of all episodes):\nimport h5py, numpy as np; lengths = [30, 30]\n"
    )
    data = mended(path, said.replace("[30, 30]", "[20, 20, 20]"))
    assert (data.episodes, int(data.terminal_N.sum()), len(data.obs_ND)) == (3, 2, 59)


def test_a_file_without_any_end_is_refused_with_the_line_for_equal_episodes(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", timeouts=None)
    said = refusal(path, ANY)
    assert said.splitlines()[0] == (
        "FILE has no timeouts, and its last row is not terminal; mark each episode's last row (in place of 60 put the "
        "rows of your episodes):"
    )
    assert mended(path, said.replace("% 60", "% 20")).episodes == 3


def test_an_end_that_only_next_observations_show_is_found_and_can_be_marked(tmp_path: Path):
    values = episodes() | {"terminals": ENDS & (np.arange(60) > 30), "next_observations": successors(columns())}
    path = write(tmp_path / "a.hdf5", values)
    said = refusal(path, ANY)
    assert said.startswith(
        "FILE has no timeouts, and next_observations differ from the next row's observations in 1 row not marked as "
        "terminal, first row 19; mark these rows, and the last, as ends by time limit:\n"
    )
    data = mended(path, said)
    assert (data.episodes, len(data.obs_ND), data.next_obs_ND[19, 0]) == (3, 60, -1.0)


def test_a_shard_without_timeouts_is_judged_alone(tmp_path: Path):
    write(tmp_path / "a.hdf5", episodes())
    write(tmp_path / "b.hdf5", episodes() | {"terminals": np.zeros(60, bool)})
    assert refusal(tmp_path, ANY).startswith("FILE/b.hdf5 has no timeouts, and its last row is not terminal; ")


def test_check_tells_of_missing_timeouts_beside_the_other_faults(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", timeouts=None, rewards=None, actions=np.full((60, 6), 2.0))
    assert [fault["key"] for fault in check(path)["faults"]] == ["rewards", "timeouts", "actions"]


def test_the_lines_of_the_first_of_several_faults_can_be_pasted(tmp_path: Path, capsys):
    path = spoiled(tmp_path / "a.hdf5", timeouts=None, actions=np.full((60, 6), 2.0))
    with pytest.raises(SystemExit):
        main(["data", "check", str(path)])
    said = capsys.readouterr().err
    assert said.splitlines()[0].endswith("rows of your episodes): (and 1 more fault, listed above)")
    paste(said.rstrip(), path)
    assert [fault["key"] for fault in check(path)["faults"]] == ["actions"]


# ---- other names


RENAMED = {
    "gymnasium": {
        "observations": "obs",
        "actions": "action",
        "rewards": "reward",
        "terminals": "terminations",
        "timeouts": "truncations",
    },
    "states": {"observations": "states", "terminals": "terminated", "timeouts": "truncated"},
    "capitals": {"observations": "Observations", "rewards": "Rewards"},
    "a group": dict.fromkeys(columns(), "") | {key: f"train/{key}" for key in columns()},
}


@pytest.mark.parametrize("names", RENAMED.values(), ids=RENAMED.keys())
def test_columns_of_other_names_are_named_with_the_line_that_renames_them(tmp_path: Path, names: dict[str, str]):
    path = write(tmp_path / "a.hdf5", {names.get(key, key): value for key, value in columns().items()})
    said = refusal(path, ANY)
    assert all(f"rename {name} to {key}" in said for key, name in names.items())
    assert mended(path, said).episodes == 3


def test_done_may_mark_time_limits_and_is_told_to_be_split(tmp_path: Path):
    values = columns()
    path = write(tmp_path / "a.hdf5", values | {"terminals": None, "timeouts": None, "dones": ENDS})
    said = refusal(path, ANY)
    assert said.startswith(
        "FILE has no terminals, timeouts; it holds actions, dones, observations, rewards; rename dones to terminals "
        "(terminals are true ends alone: if dones also marks time limits, move these into timeouts), and add "
        "timeouts:\n"
    )
    assert mended(path, said).episodes == 3


def test_next_observations_of_another_name_are_noted(tmp_path: Path):
    data = dataset.load(ANY, spoiled(tmp_path / "a.hdf5", next_obs=columns()["observations"]))
    assert "not read, though it seems to be meant: next_obs (rename it to next_observations)" in data.notes


def test_episodes_in_groups_are_told_to_be_joined(tmp_path: Path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for number in range(20):
            file[f"demo_{number}/obs"] = np.zeros((5, 3))
    said = refusal(path, ANY)
    assert "it holds demo_0/, demo_1/, " in said and " and 8 more; " in said
    assert "with the episodes behind one another, not in groups: docs/data.md" in said


# ---- other lengths


def longer(unfinished: bool, marked: bool = True) -> dict[str, Any]:
    """Return episodes that keep their final observation, -1, among the others."""
    values = columns()
    ends = np.flatnonzero(ENDS) if marked else np.array([59])
    values["observations"] = np.insert(values["observations"], ends + 1, -1.0, axis=0)
    values["timeouts"] = ENDS & marked
    if unfinished:
        values["timeouts"][-1] = False
    return values


@pytest.mark.parametrize("unfinished", [False, True], ids=["complete", "the last unfinished"])
def test_final_observations_among_the_others_are_moved_out(tmp_path: Path, unfinished: bool):
    path = write(tmp_path / "a.hdf5", longer(unfinished))
    said = refusal(path, ANY)
    assert said.startswith(
        "FILE: observations has 63 rows but actions, rewards, terminals and timeouts have 60; every array needs one "
        "row per transition: move each episode's final observation out:\n"
    )
    data = mended(path, said)
    assert len(data.obs_ND) == 60 and (data.next_obs_ND[[19, 39, 59], 0] == -1).all() and (data.obs_ND >= 0).all()


def test_one_episode_with_its_final_observation_is_mended_before_its_end_is_marked(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", longer(False, marked=False))
    assert [fault["key"] for fault in check(path)["faults"]] == ["observations", "timeouts"]
    paste(refusal(path, ANY), path)
    assert refusal(path, ANY).startswith("FILE: none of the 60 rows ends an episode")


@pytest.mark.parametrize(
    ("rows", "kept", "said"),
    [
        (59, 57, "next_observations has 59 rows but observations has 60; every array needs one row per transition, or"),
        (
            61,
            60,
            "next_observations has 61 rows but observations has 60; every array needs one row per transition: drop",
        ),
    ],
    ids=["a row less", "a row more"],
)
def test_next_observations_of_another_length_are_mended(tmp_path: Path, rows: int, kept: int, said: str):
    whole = np.arange(61, dtype=np.float32)[:, None] * np.ones(17, np.float32)
    after = whole[1:60] if rows == 59 else whole
    path = spoiled(tmp_path / "a.hdf5", next_observations=after, timeouts=np.arange(60) == 59 if rows == 61 else ENDS)
    told = refusal(path, ANY)
    assert said in told and len(mended(path, told).obs_ND) == kept


@pytest.mark.parametrize("key", ["observations", "actions"])
def test_numbers_without_a_second_axis_get_one(tmp_path: Path, key: str):
    path = spoiled(tmp_path / "a.hdf5", **{key: np.linspace(-1, 1, 60, dtype=np.float32)})
    said = refusal(path, ANY)
    assert said.startswith(f"FILE: {key} has shape (60,), expected 2 axes; write it as (N, 1):")
    assert mended(path, said).obs_ND.shape[1] in (1, 17)


def test_choices_are_no_actions(tmp_path: Path):
    assert refusal(spoiled(tmp_path / "a.hdf5", actions=np.arange(60) % 2), ANY) == (
        "FILE: actions holds one int64 a row, which looks like discrete choices; policies here act with vectors of "
        "numbers, float32 (N, size): use such an environment"
    )


# ---- images

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 16, 20, 3), dtype=np.uint8)
FIRST, UNIT = np.moveaxis(IMAGES, -1, 1), (IMAGES / 255).astype(np.float32)
FORMS = {
    "channels first": (FIRST, "np.moveaxis(old, 1, -1)"),
    "stacked, channels first": (np.repeat(FIRST, 4, axis=1)[:, :, :, :16], "np.moveaxis(old, 1, -1)"),
    "one channel, first": (FIRST[:, :1], "np.moveaxis(old, 1, -1)"),
    "no channels": (IMAGES[..., 0], "old[..., None]"),
    "from 0 to 1": (UNIT, "(old * 255).round().astype(np.uint8)"),
    "from 0 to 255": (IMAGES.astype(np.float32), "old.astype(np.uint8)"),
    "integers": (IMAGES.astype(np.int64), "old.astype(np.uint8)"),
    "from 0 to 1, channels first": (np.moveaxis(UNIT, -1, 1), "(np.moveaxis(old, 1, -1) * 255).round().astype("),
    "from 0 to 1, no channels": (UNIT[..., 0], "(old[..., None] * 255).round().astype(np.uint8)"),
}


@pytest.mark.parametrize(("images", "words"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("final", [False, True], ids=["", "with final ones"])
def test_images_of_another_form_are_named_with_the_line_that_turns_them(
    tmp_path: Path, images: np.ndarray, words: str, final: bool
):
    path = spoiled(tmp_path / "a.hdf5", observations=images, **({FINAL_OBS: images[:3]} if final else {}))
    said = refusal(path, ANY)
    assert f"observations has shape {images.shape}, expected 2 axes, or images of uint8 (N, H, W, C); " in said
    assert words in said
    frames = mended(path, said).frames_FHWC
    assert frames is not None and frames.dtype == np.uint8 and frames.shape[3] in (1, 3, 12)
    assert np.array_equal(frames[:60, :, :16, 0], IMAGES[:, :, :16, 0])


@pytest.mark.parametrize("shape", [(16, 20, 3), (8, 64, 9), (84, 84, 12), (8, 9, 2), (64, 64, 32)], ids=str)
def test_images_with_channels_last_are_read(tmp_path: Path, shape: tuple[int, ...]):
    path = spoiled(tmp_path / "a.hdf5", observations=np.zeros((60, *shape), np.uint8))
    assert dataset.load(ANY, path).frames_FHWC is not None


def test_next_images_become_final_ones(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", observations=IMAGES, next_observations=np.roll(IMAGES, -1, axis=0))
    data = mended(path, refusal(path, ANY))
    assert len(data.reward_N) == 60 and data.frames_FHWC is not None and len(data.frames_FHWC) == 63


def test_final_images_among_the_others_are_moved_out(tmp_path: Path):
    images = np.insert(IMAGES, np.flatnonzero(ENDS) + 1, 7, axis=0)
    path = spoiled(tmp_path / "a.hdf5", observations=images)
    data = mended(path, refusal(path, ANY))
    assert len(data.reward_N) == 60 and data.frames_FHWC is not None and (data.frames_FHWC[60:] == 7).all()
