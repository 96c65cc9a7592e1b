"""metrics.jsonl holds each step once, whatever was cut off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_cases import back_to, gtp_fast, tiny, tiny_settings, wait_for

from gtp_fast.runs import metrics
from gtp_fast.training.train import train


@given(st.lists(st.integers(1, 50), unique=True, max_size=12), st.integers(0, 50), st.binary(max_size=20))
def test_lines_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path_factory, steps, last, torn):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    whole = [json.dumps({"step": step}) for step in sorted(steps)]
    path.write_text("".join(line + "\n" for line in whole) + '{"step": 9' + torn.hex())
    metrics.truncate_after(path, last)
    assert path.read_text().splitlines() == [json.dumps({"step": step}) for step in sorted(steps) if step <= last]


def test_means_are_sums_over_steps():
    assert metrics.means([[10.0, 20.0], [30.0, 40.0]], ("a", "b"), 10) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


@pytest.mark.parametrize("line", ["123", '{"loss": 1}', "\x00\x00"], ids=["number", "no step", "zeros"])
def test_what_is_no_metric_line_ends_the_file(tmp_path: Path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    metrics.truncate_after(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_the_log_loses_intervals_after_the_checkpoint_and_keeps_all_else(tmp_path: Path):
    path = tmp_path / "train.log"
    kept = [
        "start  at step 0 on x",
        "step 1,000 52.3 steps/s q 1",
        "evaluated step 3,000 score 9",
        "warning: step",
        "step",
    ]
    path.write_text("\n".join([*kept, "step 2,000 52.3 steps/s q 1", "step 1,0"]))
    metrics.truncate_log_after(path, 1_000)
    assert path.read_text() == "".join(f"{line}\n" for line in kept)


EVALUATED = {"eval_every": 10, "eval_max_steps": 20, "tensorboard": True}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """A folder with data and a run; nothing below changes it."""
    folder = tmp_path_factory.mktemp("evaluated")
    train(tiny(folder, **EVALUATED))
    return folder


def test_the_log_holds_the_start_its_notes_and_evaluations(evaluated: Path):
    log = (evaluated / "run/train.log").read_text().splitlines()
    assert log[0].startswith("start  at step 0 on ") and log[1].startswith("note   left out 3 of 60 rows")
    assert log[-1].startswith("evaluated step 30 score ") and len(log[-1].split()) == 6


def test_a_resumed_runs_log_names_its_start_and_each_step_once(tmp_path: Path):
    train(tiny(tmp_path))
    back_to(tmp_path / "run", 10)
    train(tiny(tmp_path))
    log = (tmp_path / "run/train.log").read_text().splitlines()
    assert [line.split()[1] for line in log if line.startswith("step ")] == ["10", "20", "30"]
    assert [line.split()[3] for line in log if line.startswith("start ")] == ["0", "10"]
    assert [line for line in log if line.startswith("note   continuing from ")]


def test_tensorboard_shows_each_point_once_after_a_resume(evaluated: Path, tmp_path: Path):
    from tensorboard.backend.event_processing import event_accumulator as reader  # takes a second

    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    back_to(tmp_path / "run", 10)
    (tmp_path / "run/eval/step-00000030.json").unlink()  # one evaluation is made again, one is not
    train(tiny(tmp_path, **EVALUATED))
    points = reader.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    found = {name: [point.step for point in points.Scalars(name)] for name in points.Tags()["scalars"]}
    assert {"actor_loss/member0", "score/member1"} <= set(found)
    assert all(sorted(steps) == [10, 20, 30] for steps in found.values()), found


def _wandb_history(file: Path) -> list[int]:
    """Return the steps that an offline W&B file holds, in order: LevelDB's log format around protobuf records."""
    from wandb.proto import wandb_internal_pb2 as records  # takes seconds

    data, steps, whole, place = file.read_bytes(), [], b"", 7  # after W&B's own header
    while place + 7 <= len(data):
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole, place = whole + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # the only or the last piece of a record
            items = {
                item.key or item.nested_key[0]: item.value_json
                for item in records.Record.FromString(whole).history.item
            }
            steps += [int(items["step"])] if "step" in items else []
            whole = b""
    return steps


@pytest.fixture
def offline(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_wandb_continues_one_run_and_loses_no_step_after_a_resume(tmp_path: Path, offline):
    train(tiny(tmp_path, wandb=True))
    back_to(tmp_path / "run", 10)
    train(tiny(tmp_path, wandb=True))
    own = (tmp_path / "run/wandb-id").read_text().strip()
    parts = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert [part.name.rsplit("-", 1)[1] for part in parts] == [own, own]
    logged = [[10, 20, 30], [20, 30]]  # written by a process of W&B's own, which ends after the run
    wait_for(lambda: [_wandb_history(part / f"run-{own}.wandb") for part in parts] == logged)


@pytest.mark.long
def test_wandb_without_a_key_is_refused_before_the_first_step_with_the_remedy(tmp_path: Path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in a file either
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in tiny_settings(tmp_path).items()]
    done = gtp_fast("train", *words, "--wandb")
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: --wandb: W&B cannot be reached (No API key configured.")
    assert "run wandb login, or set WANDB_MODE=offline and upload" in said
    assert not (tmp_path / "run/ckpt/step-00000010").exists()
