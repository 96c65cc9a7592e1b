"""The run: its files, its refusals, divergence, a full disk, and what a second call does."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_cases import columns, write
from hypothesis import given
from hypothesis import strategies as st
from run_cases import SMALLER_THAN_A_STATE, files_up_to, logged_steps, tiny
from safetensors.torch import load_file

from gtp_fast.cli.main import main
from gtp_fast.config import TrainConfig
from gtp_fast.errors import CheckpointError, DiskError, DivergedError, OutOfMemoryError, UsageError
from gtp_fast.runs import checkpoint, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Evaluated, Progress, Started, Warned
from gtp_fast.training import memory
from gtp_fast.training.train import _steps_at_once, train


def _events(cfg):
    events = []
    return train(cfg, events.append), events


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Hold a finished run, beside its data; nothing below changes it."""
    place = tmp_path_factory.mktemp("finished")
    train(tiny(place))
    return place


def test_a_run_leaves_the_promised_files_and_each_step_once(tmp_path: Path):
    result, events = _events(tiny(tmp_path))
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "environment.json", "LOCK", "metrics.jsonl", "train.log"}
    assert logged_steps(run) == checkpoint.steps(RunDir(run)) == [10, 20, 30]
    assert result.checkpoint.endswith("step-00000030")
    assert [type(e) for e in events if not isinstance(e, Warned)] == [Started, Progress, Progress, Progress]
    environment = json.loads((run / "environment.json").read_text())
    assert len(environment["data_sha256"]) == 64 and environment["torch"] == torch.__version__


def test_metric_lines_hold_no_clock(folder: Path):
    line = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[0])
    assert "actor_loss" in line and not [name for name in line if "second" in name or "time" in name]


def test_a_finished_run_is_not_trained_again(folder: Path):
    before = (folder / "run/metrics.jsonl").read_bytes()
    result, events = _events(tiny(folder))
    assert not [e for e in events if isinstance(e, Progress)]
    assert (folder / "run/metrics.jsonl").read_bytes() == before
    assert result.checkpoint == str(folder / "run/ckpt/step-00000030")


def test_other_settings_in_the_same_directory_are_refused_by_name(folder: Path):
    with pytest.raises(UsageError, match=r"--eta 2\.0 there, 3\.0 here"):
        train(tiny(folder, eta=3.0))


def test_a_run_with_only_damaged_checkpoints_is_not_restarted(folder: Path, tmp_path: Path):
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    for file in (run / "ckpt").rglob("state.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        train(tiny(folder, run_dir=str(run)))


def test_evaluation_is_reported_saved_and_its_best_kept(tmp_path: Path):
    write(tmp_path / "data.hdf5", columns(sizes=(11, 3)))  # of a hopper that falls soon
    result, events = _events(tiny(tmp_path, env="Hopper-v5", eval_every=15))
    steps = [e.step for e in events if isinstance(e, Evaluated)]
    assert steps == [15, 30] and result.score_last is not None and result.score_best is not None
    each = [records.read_evaluations(RunDir(tmp_path / "run"))[i].figures for i in (0, 1)]
    assert result.score_last == each[1] and result.score_best == [max(pair) for pair in zip(*each, strict=True)]
    saved = json.loads((tmp_path / "run/eval/step-00000030.json").read_text())
    assert saved["episodes"] == 1 and len(saved["scores"]) == 2 and saved["sampling_steps"] == 2
    _, meta = checkpoint.load_policy(tmp_path / "run/ckpt/best")
    assert meta["figures"] == pytest.approx(result.score_best)


def test_every_zero_means_never_but_the_last_step_is_saved(tmp_path: Path):
    train(tiny(tmp_path, eval_every=0, save_every=0))
    assert not list((tmp_path / "run/eval").iterdir())
    assert checkpoint.steps(RunDir(tmp_path / "run")) == [30]


def test_promise_4_divergence_stops_the_run_within_an_interval_and_is_never_saved(tmp_path: Path):
    cfg = tiny(tmp_path, lr=1e3, grad_norm=0.0, steps=60, save_every=1)  # the first step's state is still finite
    with pytest.raises(DivergedError, match="was not finite at step") as error:
        train(cfg)
    assert error.value.exit_code == 4
    failure = json.loads((tmp_path / "run/failure.json").read_text())
    assert failure["step"] < 15 and failure["seed"] in (0, 1) and failure["advice"]
    assert failure["last_good_checkpoint"] == str(tmp_path / "run/ckpt/step-00000001")
    saved = list((tmp_path / "run/ckpt").rglob("*.safetensors"))
    assert len(saved) == 2
    for file in saved:
        assert all(torch.isfinite(t).all() for t in load_file(file).values() if t.is_floating_point())


def test_promise_5_a_full_disk_warns_and_gives_up_after_three_refusals(tmp_path: Path):
    """Metric lines of every fifth step still fit: they do not excuse checkpoints that do not."""
    events: list = []
    with files_up_to(SMALLER_THAN_A_STATE), pytest.raises(DiskError, match="3 writes of checkpoints") as error:
        train(tiny(tmp_path, steps=200, log_every=5), events.append)
    assert error.value.exit_code == 7 and checkpoint.steps(RunDir(tmp_path / "run")) == []
    warned = [f"checkpoint at step {step}" for step in (10, 20, 30)]
    assert [event.message.split(" could")[0] for event in events if isinstance(event, Warned)] == warned
    log = (tmp_path / "run/train.log").read_text().splitlines()
    told = [line.removeprefix("warning: ") for line in log if line.startswith("warning: ")]
    assert [line.split(" could")[0] for line in told] == warned
    assert log[-1].startswith("stopped: DiskError: 3 writes of checkpoints")


def test_a_last_checkpoint_that_cannot_be_written_is_no_success(tmp_path: Path):
    cfg = tiny(tmp_path, save_every=0, log_every=1000, steps=10)
    with files_up_to(SMALLER_THAN_A_STATE), pytest.raises(DiskError, match="the last checkpoint could not be written"):
        train(cfg)


def test_promise_7_a_run_that_cannot_fit_is_refused_before_it_allocates(tmp_path: Path):
    with pytest.raises(
        OutOfMemoryError, match=r"needs about [\d.]+ GB .* lower --seeds, --hidden or --batch-size"
    ) as error:
        train(tiny(tmp_path, hidden=20_000, seeds=500))
    assert error.value.exit_code == 8


def _on_a_small_machine(folder: Path, estimated: bool) -> None:
    if not estimated:  # as where the system does not tell its limit
        memory.free_memory = lambda: None
    train(tiny(folder, run_dir=str(folder / "first"), steps=2))  # what is loaded late is loaded now
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), resource.RLIM_INFINITY))
    typed = "train --env HalfCheetah-v5 --backend eager --threads 1 --eval-every 0 --seeds 4 --hidden 2048 --steps 2"
    main([*typed.split(), "--dataset", str(folder / "data.hdf5"), "--run-dir", str(folder / "second")])


@pytest.mark.parametrize(("estimated", "words"), [(True, "error: the run needs about"), (False, "memory ran out")])
def test_promise_7_memory_that_runs_out_exits_8_with_the_flags_that_help(tmp_path: Path, capfd, estimated, words):
    process = multiprocessing.get_context("fork").Process(target=_on_a_small_machine, args=(tmp_path, estimated))
    process.start()
    process.join()
    told = capfd.readouterr().err
    assert process.exitcode == 8, told
    assert words in told and "lower --seeds" in told and "Traceback" not in told
    assert estimated or "lower --seeds (4), --hidden (2048)" in told


def test_a_run_that_could_not_be_evaluated_is_refused_before_it_starts(tmp_path: Path):
    write(tmp_path / "own.hdf5", columns(sizes=(29, 8)))
    kitchen = tiny(tmp_path, env="D4RL/kitchen/mixed-v2", dataset=str(tmp_path / "own.hdf5"), eval_every=10)
    with pytest.raises(UsageError, match=r"names no evaluation environment in this version; .*or pass --eval-every 0"):
        train(kitchen)
    assert not (tmp_path / "run").exists()
    assert train(replace(kitchen, eval_every=0)).score_last is None


@given(step=st.integers(0, 5_000), most=st.integers(1, 3_000), unroll=st.integers(1, 200))
def test_steps_end_where_something_is_due_or_where_a_graph_may_begin(step, most, unroll):
    cfg = TrainConfig(env="x", steps=6_000, log_every=1_000, eval_every=0, save_every=2_500, unroll=unroll)
    end = step + _steps_at_once(cfg, step, most)
    due = min(at for at in (*range(1_000, 6_001, 1_000), 2_500, 5_000) if at > step)
    assert step < end <= min(due, step + most)
    if end < due and (step + most) // unroll > step // unroll:
        assert end % unroll == 0
