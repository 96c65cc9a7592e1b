"""`gtp-fast data check` tells every fault at once, by the rules that training stops at, and what seems unintended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import columns, put, refusal, spoiled, write
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast.cli.main import main
from gtp_fast.data import catalog, dataset, rules
from gtp_fast.data.catalog import resolve
from gtp_fast.data.check import check
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import UsageError

SPEC = resolve("HalfCheetah-v5")


def random_columns() -> dict[str, Any]:
    """Return a set without any doubt: nothing constant, repeated or equal."""
    values, rng = columns(), np.random.default_rng(1)
    values["rewards"] = rng.normal(size=60).astype(np.float32)
    values["observations"] = rng.normal(size=(60, 17)).astype(np.float32)
    return values


def test_every_fault_is_told_with_key_rows_values_and_count(tmp_path: Path):
    changes = {"observations": put(([7, 9], 3), np.nan), "actions": put((slice(5, 12), 1), 1.5)}
    path = spoiled(tmp_path / "a.hdf5", terminals=np.full(60, 0.5), rewards=None, **changes)
    found = check(path)
    told = [(f["key"], f["rows"], f["values"], f["count"]) for f in found["faults"]]
    assert told == [
        ("rewards", [], [], 0),
        ("terminals", [0, 1, 2, 3, 4], [0.5] * 5, 60),
        ("observations", [7, 9], ["nan"] * 2, 2),
        ("actions", [5, 6, 7, 8, 9], [1.5] * 5, 7),
    ]
    assert (found["ready"], found["verdict"], found["command"]) == (False, "not ready: 4 faults", None)
    assert all(f["file"] == str(path) and f["remedy"] for f in found["faults"])


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": None},
        {"actions": np.zeros((59, 6), np.float32)},
        {"observations": np.full((60, 17), np.inf)},
        {"timeouts": np.zeros(60, bool)},
        {"actions": np.full((60, 6), 2.0)},
        {"observations": np.zeros((60, 11), np.float32)},
        {"infos/final_observations": np.zeros((7, 17), np.float32)},
        {"timeouts": np.ones(60, bool)},
    ],
    ids=["missing", "lengths", "infinite", "no end", "outside", "sizes", "last observations", "nothing left"],
)
def test_training_stops_with_the_words_of_the_first_fault(tmp_path: Path, change: dict[str, Any]):
    path = spoiled(tmp_path / "a.hdf5", **change)
    message = check(path, SPEC)["faults"][0]["message"]
    assert refusal(path, SPEC) == message.replace(str(path), "FILE")


def test_a_whole_file_is_ready_with_the_command_to_type(tmp_path: Path):
    path = write(tmp_path / "mine.hdf5", random_columns())
    found = check(path)
    assert found["ready"] and found["faults"] == found["warnings"] == []
    assert found["command"] == f"gtp-fast train --env HalfCheetah-v5 --dataset {path}"
    assert (found["rows"], found["transitions"], found["left_out"], found["episodes"]) == (60, 57, 3, 3)
    assert found["episode_length"] == {"min": 20, "median": 20.0, "max": 20}


def test_what_clipping_would_leave_is_described_and_still_not_ready(tmp_path: Path):
    values = random_columns()
    values["actions"][0, 0] = 3.0
    found = check(write(tmp_path / "a.hdf5", values))
    assert (found["ready"], found["transitions"], found["left_out"]) == (False, 57, 3)
    assert found["clipped_actions"] == 1 and found["verdict"] == "not ready: 1 fault"


def test_sizes_are_held_to_the_environment_that_is_named(tmp_path: Path):
    found = check(write(tmp_path / "a.hdf5", random_columns()), resolve("Hopper-v5"))
    assert [f["seen"] for f in found["faults"]] == [
        "observations have 17 numbers, but Hopper-v5 has 11",
        "actions have 6 numbers, but Hopper-v5 has 3",
    ]


def test_a_file_that_cannot_be_read_is_one_fault(tmp_path: Path):
    path = tmp_path / "a.hdf5"
    path.write_text("<html>404</html>")
    found = check(path)
    assert found["verdict"] == "not ready: 1 fault" and "is not an HDF5 file" in found["faults"][0]["message"]


DOUBTS: dict[str, tuple[dict[str, Any], str]] = {
    "rewards all zero": ({"rewards": np.zeros(60)}, "rewards are 0 in all 60 rows"),
    "both ends": ({"terminals": np.arange(60) == 19}, "both terminals and timeouts are true: 1 row, first row 19"),
    "time limits as terminals": (
        {"terminals": np.arange(1, 61) % 20 == 0, "timeouts": np.zeros(60, bool)},
        "all 3 episodes are 20 rows long and end as terminal",
    ),
    "repeated rows": (
        {key: np.concatenate([value[:40], value[20:40]]) for key, value in random_columns().items()},
        "observation, action and reward repeat an earlier row: 20 rows, first row 40",
    ),
    "constant column": (
        {"observations": random_columns()["observations"] * (np.arange(17) != 4)},
        "observations never change in 1 of 17 numbers (4)",
    ),
    "small actions": ({"actions": random_columns()["actions"] * 0.01}, "actions reach 0.00999 at most"),
    "large observations": ({"observations": random_columns()["observations"] * 1e4}, "observations reach 3.75e+04"),
    "an unmarked end": (
        {"next_observations": np.roll(random_columns()["observations"], -1, axis=0) + (np.arange(60) == 9)[:, None]},
        "next_observations inside an episode are not the next row's observations: 1 row, first row 9",
    ),
}


@pytest.mark.parametrize(("changes", "seen"), DOUBTS.values(), ids=DOUBTS.keys())
def test_what_is_seldom_meant_is_told_and_stops_nothing(tmp_path: Path, changes: dict[str, Any], seen: str):
    path = write(tmp_path / "a.hdf5", random_columns() | changes)
    assert seen in [doubt["seen"] for doubt in check(path)["warnings"]]
    dataset.load(SPEC, path)


def test_faults_of_shards_name_the_shard_and_its_row(tmp_path: Path):
    write(tmp_path / "a.hdf5", random_columns())
    bad = spoiled(tmp_path / "b.hdf5", actions=put((4, 0), 2.0))
    found = check(tmp_path)
    assert [(f["file"], f["rows"]) for f in found["faults"]] == [(str(bad), [4])]


def test_check_takes_a_name():
    assert check("hopper-demo-v0")["episodes"] == 266


def test_check_refuses_what_is_neither_path_nor_name():
    with pytest.raises(UsageError, match="hopper-demo-v0"):
        check("hoper-demo-v0")


def test_the_command_prints_one_object_and_ends_with_code_3(tmp_path: Path, capsys):
    path = spoiled(tmp_path / "a.hdf5", rewards=np.full(60, np.nan), timeouts=np.zeros(60, bool))
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(path), "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert ended.value.code == 3 and len(found["faults"]) == 2
    assert said.err == f"error: {found['faults'][0]['message']} (and 1 more fault, listed above)\n"


def test_the_report_in_words_names_rows_remedies_and_the_verdict(tmp_path: Path, capsys):
    path = spoiled(tmp_path / "a.hdf5", actions=put((slice(5, 12), 1), 1.37))
    with pytest.raises(SystemExit):
        main(["data", "check", str(path)])
    said = capsys.readouterr().out
    assert "rows 5 (1.37), 6 (1.37), 7 (1.37), 8 (1.37), 9 (1.37), ...; 7 in all" in said
    assert "-> pass --clip-actions to clip them (7 values)" in said and said.endswith("not ready: 1 fault\n")


def test_large_observations_are_told_of_with_the_flag_that_scales_them(tmp_path: Path):
    path = spoiled(tmp_path / "a.hdf5", observations=np.full((60, 17), 2e3, np.float32))
    assert any("--normalise-obs" in told["remedy"] for told in check(path, SPEC)["warnings"])


def test_a_point_maze_is_known_by_its_sizes(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", columns(sizes=(6, 2)))
    assert set(catalog.POINT_MAZES) <= set(check(path)["environments"])


def test_a_file_of_an_unknown_environment_asks_for_its_name(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", columns(sizes=(4, 2)))
    assert "--env MODULE:ENVIRONMENT-v0" in check(path)["command"]
    assert check(path, DataSpec("mine:Mine-v0", "file"))["command"].startswith("gtp-fast train --env mine:Mine-v0 ")


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 2)), max_size=12, unique=True), st.integers(1, 40))
def test_faults_are_those_of_the_whole_array_for_any_size_of_block(monkeypatch, places: list, block: int):
    monkeypatch.setattr(rules, "BLOCK", block)
    array = np.zeros((30, 3), np.float32)
    for row, column in places:
        array[row, column] = 10 * row + column + 1
    found = rules.find_bad_values("x", array, lambda part: part > 0)
    rows = sorted({row for row, _ in places})[:5]
    assert (found is None) == (not places)
    if found is not None:
        firsts = [10 * row + min(c for r, c in places if r == row) + 1 for row in rows]
        assert (list(found.rows), list(found.values), found.count) == (rows, firsts, len(places))
