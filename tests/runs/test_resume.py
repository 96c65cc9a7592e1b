"""Where a run goes, where it continues, and what it never takes for its own."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import columns, write
from run_cases import back_to, tiny

from gtp_fast import device
from gtp_fast.config import TrainConfig
from gtp_fast.data import catalog, dataset
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.runs import checkpoint, directory, resume
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Noted, Progress, Started
from gtp_fast.runs.resume import Command, open_run, starting_point
from gtp_fast.training.train import train


def quick(folder: Path, **changes: Any) -> TrainConfig:
    """Return the tiny settings with 6 steps in place of 30."""
    return tiny(folder, **{"steps": 6, "log_every": 2, "save_every": 2} | changes)


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch) -> TrainConfig:
    """Settings without --run-dir: the run goes below runs/ of a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return quick(tmp_path, run_dir=None)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run with the tiny settings, saved at 2, 4 and 6."""
    train(quick(tmp_path))
    return RunDir(tmp_path / "run")


def _data(cfg: TrainConfig) -> dataset.Transitions:
    return dataset.load(catalog.resolve(cfg.env), Path(str(cfg.dataset)))


def _command(cfg: TrainConfig) -> Command:
    return Command(device.resolve(cfg)[0], _data(cfg))


def _place(cfg: TrainConfig) -> Path:
    """Return the directory that the next run with these settings takes."""
    with open_run(_command(cfg)) as opened:
        return opened.run.path


def _finished_long_ago(cfg: TrainConfig) -> RunDir:
    """Train, and set the time in the run's name back, so that a new run cannot take the same name."""
    done = Path(train(cfg).run_dir)
    return RunDir(done.rename(done.with_name(done.name.replace("-s0-2", "-s0-1"))))


def test_auto_continues_the_unfinished_run_of_the_same_settings(cfg):
    run = back_to(Path(train(cfg).run_dir), 2)
    assert run.path.parent == Path("runs/HalfCheetah-v5")
    assert Path(train(cfg).run_dir) == run.path and checkpoint.steps(run) == [2, 4, 6]


def test_never_follows_a_finished_run_by_a_new_one(cfg):
    done = _finished_long_ago(cfg)
    assert _place(cfg) == done.path and _place(replace(cfg, resume="never")) != done.path


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return when each file below a folder was written, and its size."""
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (stat.st_mtime_ns, stat.st_size) for path, stat in found}


@pytest.mark.parametrize("typed", ["alike", "with --run-dir", "with --resume RUN", "with --resume CHECKPOINT"])
def test_a_finished_run_is_told_with_its_own_figures_and_nothing_is_trained_or_written(cfg, typed):
    cfg, events = replace(cfg, eval_every=4 if typed == "alike" else 0, eval_max_steps=20), []
    first = train(cfg)
    run = RunDir(Path(first.run_dir))
    named = {
        "alike": {},
        "with --run-dir": {"run_dir": first.run_dir},
        "with --resume RUN": {"resume": first.run_dir},
        "with --resume CHECKPOINT": {"resume": str(run.checkpoint(6))},
    }
    before = _files(Path("runs"))
    again = train(replace(cfg, **named[typed]), events.append)
    before.setdefault("HalfCheetah-v5/.LOCK", _files(Path("runs")).get("HalfCheetah-v5/.LOCK", (0, 0)))
    assert _files(Path("runs")) == before
    told = [event.message for event in events if isinstance(event, Noted)]
    assert len(told) == len(events) and f"{run.path} is finished, with 6 steps: nothing is left to train" in told
    assert again.finished_before and again.seconds > 0 and again.steps_per_second > 0
    unlike = {"seconds", "steps_per_second", "finished_before"}
    assert asdict(again) | dict.fromkeys(unlike) == asdict(first) | dict.fromkeys(unlike)


def test_a_finished_run_of_a_foreign_last_checkpoint_is_refused(cfg):
    run, other = _finished_long_ago(cfg), Path(train(replace(cfg, eta=3.0)).run_dir)
    shutil.rmtree(run.checkpoint(6))
    shutil.copytree(RunDir(other).checkpoint(6), run.checkpoint(6))
    with pytest.raises(CheckpointError, match="is of a run with other settings"):
        train(cfg)


def test_a_run_whose_last_evaluation_was_cut_off_is_continued(cfg):
    done = _finished_long_ago(cfg)
    last = checkpoint.load(done.checkpoint(6))
    policy, _ = checkpoint.load_policy(done.checkpoint(6))
    checkpoint.save(done, 6, last.tensors, policy, last.meta, {6: policy})
    assert _place(cfg) == done.path


def test_a_run_whose_last_checkpoint_is_damaged_is_continued(cfg):
    done = _finished_long_ago(cfg)
    (done.checkpoint(6) / checkpoint.STATE).write_bytes(b"short")
    assert _place(cfg) == done.path


def test_an_unfinished_run_on_other_data_is_left_alone(cfg, tmp_path):
    unfinished = _finished_long_ago(cfg)
    back_to(unfinished.path, 2)
    other = write(tmp_path / "other.hdf5", columns(episodes=4, length=20))
    assert _place(cfg) == unfinished.path
    assert _place(replace(cfg, dataset=str(other))) != unfinished.path


def test_an_unfinished_run_with_the_former_ema_of_stable_is_named(cfg):
    former = back_to(Path(train(replace(cfg, **resume.FORMER_STABLE)).run_dir), 2)
    with open_run(_command(cfg)) as opened:
        assert opened.run.path != former.path
        assert any(f"--resume {former.path}" in note for note in opened.notes)
    back_to(Path(train(cfg).run_dir), 2)  # the next command continues this run and needs no such note
    with open_run(_command(cfg)) as opened:
        assert not any(str(former.path) in note for note in opened.notes)


def test_never_takes_a_new_directory_even_within_one_second(cfg, monkeypatch):
    class Stopped(directory.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(directory, "datetime", Stopped)
    never = replace(cfg, resume="never")
    assert _place(never) != _place(never)


def test_never_refuses_a_directory_with_anything_in_it(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("two years")
    with pytest.raises(UsageError, match="is not empty; choose another --run-dir"):
        train(quick(tmp_path, resume="never"))


def test_a_run_to_resume_and_another_directory_contradict_each_other(run, tmp_path: Path):
    with pytest.raises(UsageError, match="leave out --run-dir"):
        train(quick(tmp_path, resume=str(run.path), run_dir=str(tmp_path / "else")))


def test_a_checkpoint_of_other_settings_is_refused_though_its_shapes_fit(run, tmp_path: Path):
    train(quick(tmp_path, eta=3.0, run_dir=str(tmp_path / "other")))
    back_to(run.path, 2)
    shutil.copytree(tmp_path / "other/ckpt/step-00000004", run.checkpoint(4))
    with pytest.raises(CheckpointError, match="is of a run with other settings"):
        train(quick(tmp_path))


def test_the_best_policy_outlives_a_kill_before_the_first_checkpoint(tmp_path: Path):
    cfg = quick(tmp_path)
    run = RunDir(tmp_path / "run")
    checkpoint.save_best(run, {"actor": torch.ones(2, 3)}, {"step": 5, "figures": [7.0, 8.0], "steps": [5, 5]})
    start = starting_point(run, device.resolve(cfg)[0], _data(cfg))
    assert start.checkpoint is None and start.best["figures"] == [7.0, 8.0]


def _stop_at(step: int):
    """Return a listener that ends the run at the metrics of a step, as Ctrl-C does, before a checkpoint of it."""

    def listen(event: object) -> None:
        if isinstance(event, Progress) and event.step == step:
            raise KeyboardInterrupt

    return listen


def test_a_run_that_goes_back_behind_damaged_checkpoints_keeps_what_it_saves(run, tmp_path: Path):
    for step in (4, 6):
        (run.checkpoint(step) / checkpoint.STATE).write_bytes(b"short")
    with suppress(KeyboardInterrupt):
        train(quick(tmp_path, save_every=3, log_every=4, keep=1), _stop_at(4))
    assert checkpoint.load(run.checkpoint(3)).step == 3


def test_means_are_right_when_the_log_interval_changes_on_the_way(tmp_path: Path):
    def lines(run: str) -> dict[int, list[float]]:
        rows = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        return {row["step"]: row["actor_loss"] for row in rows}

    train(quick(tmp_path, log_every=1, run_dir=str(tmp_path / "each")))
    train(quick(tmp_path, log_every=3))
    back_to(tmp_path / "run", 4)
    train(quick(tmp_path, log_every=2))
    each, coarse = lines("each"), lines("run")
    assert list(coarse) == [3, 6]
    # Sums of 3 float32 losses, taken on the device there and in float64 here.
    assert coarse[6][0] == pytest.approx(sum(each[step][0] for step in (4, 5, 6)) / 3, rel=1e-5)


def test_a_failure_that_was_overcome_is_no_longer_told(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/failure.json").write_text("{}")
    train(quick(tmp_path))
    assert not (tmp_path / "run/failure.json").exists()


def test_going_back_to_an_older_checkpoint_leaves_no_gap_and_no_step_twice(tmp_path: Path):
    cfg = quick(tmp_path, log_every=1)
    train(cfg)
    whole, run = (tmp_path / "run/metrics.jsonl").read_bytes(), RunDir(tmp_path / "run")
    with suppress(KeyboardInterrupt):
        train(replace(cfg, resume=str(run.checkpoint(2))), _stop_at(3))
    assert checkpoint.steps(run) == [2]
    train(cfg)
    assert run.metrics.read_bytes() == whole and checkpoint.steps(run) == [2, 4, 6]


def test_going_back_says_which_checkpoints_it_removes(run, tmp_path: Path):
    events: list = []
    train(quick(tmp_path, resume=str(run.checkpoint(2))), events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert "removing later checkpoints, of steps 4, 6" in started.notes


def test_older_checkpoints_that_a_kill_left_go_when_the_run_is_found_again(tmp_path: Path):
    train(quick(tmp_path, keep=3))
    assert checkpoint.steps(RunDir(tmp_path / "run")) == [2, 4, 6]
    train(quick(tmp_path, keep=1))  # as if the last save had been killed before it removed them
    assert checkpoint.steps(RunDir(tmp_path / "run")) == [6]


def test_a_named_checkpoint_that_is_the_last_removes_nothing(run, tmp_path: Path):
    train(quick(tmp_path, resume=str(run.checkpoint(6))))
    assert checkpoint.steps(run) == [2, 4, 6]


def test_a_named_checkpoint_that_is_damaged_removes_nothing(run, tmp_path: Path):
    (run.checkpoint(2) / checkpoint.STATE).write_bytes(b"short")
    with pytest.raises(CheckpointError):
        train(quick(tmp_path, resume=str(run.checkpoint(2))))
    assert checkpoint.steps(run) == [2, 4, 6]


def test_a_run_that_is_named_continues_without_its_settings_being_typed(run):
    back_to(run.path, 2)
    result = train(run_settings({"resume": str(run.path)}))
    assert Path(result.run_dir) == run.path and checkpoint.steps(run) == [2, 4, 6]


@pytest.mark.parametrize("program", [None, "#!/bin/sh\necho fatal: dubious ownership >&2\nexit 128\n", "no program"])
def test_a_checkout_whose_commit_git_does_not_tell_has_none(tmp_path: Path, monkeypatch, program):
    if program is not None:
        (tmp_path / "git").write_text(program)
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # a container without git, or with one that refuses
    monkeypatch.setattr(resume, "__file__", str(tmp_path / "gtp_fast/runs/resume.py"))
    (tmp_path / ".git").mkdir()
    assert resume._commit() is None


def test_a_run_on_other_data_under_the_same_directory_is_refused(run, tmp_path: Path):
    back_to(run.path, 2)
    other = write(tmp_path / "other.hdf5", columns(episodes=4, length=20))
    with pytest.raises(UsageError, match=r"was trained on other data than .*other.hdf5; choose another --run-dir"):
        train(quick(tmp_path, dataset=str(other)))
    assert checkpoint.steps(run) == [2]


def test_a_checkpoint_of_other_data_is_refused_though_its_run_does_not_name_its_data(run, tmp_path: Path):
    run.environment.unlink()  # as where a kill came before it was written
    back_to(run.path, 2)
    other = write(tmp_path / "other.hdf5", columns(episodes=4, length=20))
    with pytest.raises(CheckpointError, match=r"was trained on other data than .*other.hdf5; pass its data set, or"):
        train(quick(tmp_path, dataset=str(other)))


def test_the_environment_names_the_processor(run):
    found = json.loads((run.path / "environment.json").read_text())
    assert found["cpu"] and found["gpu"] is None
    cpuinfo = Path("/proc/cpuinfo")
    assert "model name" not in (cpuinfo.read_text() if cpuinfo.exists() else "") or found["cpu"] in cpuinfo.read_text()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_goes_on_with_other_threads_says_that_bits_may_differ(tmp_path: Path, threads):
    train(quick(tmp_path, threads=1))
    back_to(tmp_path / "run", 2)
    events = []
    train(quick(tmp_path, threads=threads), events.append)
    (notes,) = [event.notes for event in events if isinstance(event, Started)]
    assert any("may not be equal bit for bit" in note for note in notes) == (threads == 2)


def test_environment_json_describes_the_machine_and_the_data(tmp_path: Path):
    train(quick(tmp_path))
    described = json.loads((tmp_path / "run/environment.json").read_bytes())
    machine = {"gtp_fast", "commit", "python", "torch", "numpy", "platform", "cpu", "gpu", "threads"}
    data = {"data_source", "data_sha256", "data_return_mean", "data_return_std", "transitions", "references"}
    assert described.keys() == machine | data
    assert described["data_source"] == str(tmp_path / "data.hdf5")
