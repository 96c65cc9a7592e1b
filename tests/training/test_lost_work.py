"""What a run has done is not lost: by a disk that refuses for a while, or by an error that is not of a train step."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_cases import config, spec
from families import family
from run_cases import SMALLER_THAN_A_STATE, files_up_to, tiny

from gtp_fast.config import TrainConfig
from gtp_fast.errors import DiskError, DivergedError
from gtp_fast.evaluation.worker import Evaluator, Failed
from gtp_fast.runs import checkpoint, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.disk import Disk
from gtp_fast.runs.events import Alive, Evaluated, Progress, Started, Warned
from gtp_fast.runs.metrics import MetricsWriter
from gtp_fast.training import train as loop
from gtp_fast.training.evaluations import Evaluations, replace_best
from gtp_fast.training.train import train

SMALLER_THAN_A_POLICY = 3_000  # and larger than an evaluation


def settings(folder: Path, **changes: Any):
    """Settings of 30 steps, evaluated at 10, 20 and 30 in short episodes, whose schedules depend on the last step."""
    return tiny(folder, **{"env": "own_envs:Graded-v0", "eval_every": 10, "lr_schedule": "cosine"} | changes)


def allow(limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def outcome(run: Path) -> list[Any]:
    """Return what two runs must share: the last state, the metric lines, the evaluations, the best policies."""
    found = RunDir(run)
    scores = [(one.step, one.returns_SE.tolist()) for one in records.read_evaluations(found)]
    states = [found.checkpoint(30) / checkpoint.STATE, *found.checkpoints.glob("best/policy.safetensors")]
    return [scores, found.metrics.read_bytes(), *(file.read_bytes() for file in states)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with data and a run without trouble; nothing below changes it."""
    folder = tmp_path_factory.mktemp("whole")
    train(settings(folder))
    return folder


@pytest.fixture(scope="module")
def whole(finished) -> list[Any]:
    """What it leaves."""
    found = outcome(finished / "run")
    assert [step for step, _ in found[0]] == [10, 20, 30] and len(found) == 4
    return found


@pytest.mark.slow
def test_an_evaluation_that_the_disk_refuses_is_written_when_there_is_room(tmp_path: Path, whole):
    run, warned = RunDir(tmp_path / "run"), []

    def report(event: Any) -> None:
        if isinstance(event, Alive) and event.doing.startswith("waiting for the evaluation") and not warned:
            allow(SMALLER_THAN_A_POLICY)
        if isinstance(event, Warned):
            warned.append(event.message)
            # A result without its best policy would never be evaluated again.
            assert not run.evaluation(10).exists() and not (run.checkpoints / "best").exists()
            allow(resource.RLIM_INFINITY)

    with files_up_to(resource.RLIM_INFINITY):
        train(settings(tmp_path, save_every=0), report, silence_seconds=0.01)
    assert len(warned) == 1 and warned[0].startswith("the evaluation of step 10 could not be written")
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("limit", family([10, SMALLER_THAN_A_POLICY], quick=[10]), ids=["all", "best policies"])
def test_evaluations_refused_to_the_end_are_exit_7_and_the_same_command_makes_them_alone(tmp_path: Path, whole, limit):
    def report(event: Any) -> None:
        if isinstance(event, Alive) and event.doing.startswith("waiting for the evaluation"):
            allow(limit)

    with files_up_to(resource.RLIM_INFINITY), pytest.raises(DiskError) as error:
        train(settings(tmp_path), report, silence_seconds=0.01)
    refused = [step for step in (10, 20, 30) if not RunDir(tmp_path / "run").evaluation(step).exists()]
    assert refused and error.value.exit_code == 7
    steps = ", ".join(map(str, refused))
    assert str(error.value) == (
        f"the evaluations of steps {steps} could not be written to {tmp_path / 'run'}; free space and run the same "
        "command again: it makes these evaluations, and trains nothing"
    ) or "3 writes of evaluations" in str(error.value)
    events: list[Any] = []
    train(settings(tmp_path), events.append)
    assert [event.step for event in events if isinstance(event, Evaluated)] == refused
    assert not [event for event in events if isinstance(event, Progress)]
    assert outcome(tmp_path / "run") == whole


def test_a_checkpoint_keeps_the_policies_of_evaluations_that_the_disk_has_refused(tmp_path: Path):
    run, warned = RunDir(tmp_path), []
    for folder in (run.checkpoints, run.evaluations):
        folder.mkdir()
    policies = {step: {"actor": torch.full((2, 3), float(step))} for step in (10, 20)}
    with MetricsWriter(TrainConfig(env="x"), run, 0) as writer:
        evaluator, disk = Evaluator(config(), spec("Small"), 1, 0), Disk(tmp_path, warned.append)
        held = Evaluations(run, evaluator, writer, lambda event: None, disk, {}, {})  # pyright: ignore
        evaluator._ended += [(_scored(10), policies[10]), (Failed(20, "it fell"), policies[20])]
        with files_up_to(10):
            held.collect()
        assert held.pending() == policies and len(warned) == 1  # the second is not tried: results keep their order
        held.write()
        assert held.pending() == {} and len(warned) == 1
    assert [one.step for one in records.read_evaluations(run)] == [10] and records.read_absent(run)[0] == {
        20: "it fell"
    }


def test_a_damaged_last_checkpoint_that_cannot_be_replaced_is_no_success(tmp_path: Path):
    train(tiny(tmp_path))
    last = RunDir(tmp_path / "run").checkpoint(30)
    (last / checkpoint.STATE).write_bytes(b"short")
    with files_up_to(SMALLER_THAN_A_STATE), pytest.raises(DiskError, match="the last checkpoint could not be written"):
        train(tiny(tmp_path))
    train(tiny(tmp_path))
    assert checkpoint.load(last).step == 30


@pytest.mark.slow
def test_a_kill_while_a_run_goes_back_to_be_extended_loses_no_evaluation(finished, whole, tmp_path: Path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = RunDir(tmp_path / "run")
    last = checkpoint.load(run.checkpoint(30))
    policy, _ = checkpoint.load_policy(last.path)
    checkpoint.save(run, 30, last.tensors, policy, last.meta, {})  # as if its evaluations had ended before it

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "describe", killed)
        train(settings(tmp_path, steps=60, resume=str(run.checkpoint(10))))
    train(settings(tmp_path))
    assert outcome(run.path)[:3] == whole[:3]


class CallersError(Exception):
    pass


def _raised(cfg: Any, at: Any) -> None:
    def report(event: Any) -> None:
        if at(event):
            raise CallersError

    with pytest.raises(CallersError):
        train(cfg, report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "saved"),
    [
        (lambda event: isinstance(event, Progress) and event.step == 20, [20]),
        pytest.param(lambda event: isinstance(event, Evaluated), [10, 20, 30], marks=pytest.mark.long),
    ],
    ids=["an interval", "an evaluation"],
)
def test_an_error_of_the_caller_loses_no_step(tmp_path: Path, whole, at, saved):
    run = tmp_path / "run"
    _raised(settings(tmp_path, save_every=0), at)
    assert checkpoint.steps(RunDir(run))[0] in saved
    train(settings(tmp_path, save_every=0))
    assert outcome(run) == whole


def test_an_error_of_a_train_step_saves_nothing_as_the_state_may_be_half_updated(tmp_path: Path, monkeypatch):
    made = loop.patient_stepper

    def failing(*given: Any):
        steps = made(*given)

        def run_steps(count: int) -> None:
            steps(count)
            if int(given[2].step) > 20:
                raise CallersError

        return run_steps

    monkeypatch.setattr(loop, "patient_stepper", failing)
    with pytest.raises(CallersError):
        train(tiny(tmp_path, save_every=0))
    assert checkpoint.steps(RunDir(tmp_path / "run")) == []


def test_a_rescue_that_fails_too_leaves_the_first_error(tmp_path: Path):
    def report(event: Any) -> None:
        if isinstance(event, Progress):
            allow(10)
            raise CallersError

    with files_up_to(resource.RLIM_INFINITY), pytest.raises(CallersError):
        train(tiny(tmp_path, save_every=0), report)
    assert checkpoint.steps(RunDir(tmp_path / "run")) == []


def test_a_value_that_is_not_finite_is_seen_as_the_interval_is_logged(tmp_path: Path):
    events: list[Any] = []
    with pytest.raises(DivergedError):
        train(tiny(tmp_path, lr=1e30, grad_norm=0.0, steps=60, save_every=0), events.append)
    assert json.loads((tmp_path / "run/failure.json").read_text())["step"] <= 10
    assert any(isinstance(event, Started) for event in events)
    assert not [event for event in events if isinstance(event, Progress)]
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""


def test_the_best_policies_do_not_change_with_the_tensors_that_were_evaluated(tmp_path: Path):
    run, best = RunDir(tmp_path), {}
    run.checkpoints.mkdir()
    policy = {"actor": torch.zeros(4, 3)}
    replace_best(run, best, _scored(10), policy, {})
    policy["actor"] += 1.0
    assert not best["tensors"]["actor"].any()


def test_of_equal_scores_the_policy_of_the_earlier_step_is_kept_in_whatever_order_they_come(tmp_path: Path):
    run, best = RunDir(tmp_path), {}
    run.checkpoints.mkdir()
    for step, scores in ((20, (1.0, 2.0)), (30, (1.0, 3.0)), (10, (1.0, 2.5)), (40, (0.5, 3.0))):
        policy = {"actor": torch.full((2, 3), float(step)), "critic": torch.full((4, 3), float(step))}
        replace_best(run, best, _scored(step, scores), policy, {})
    assert (best["steps"], best["figures"]) == ([10, 30], [1.0, 3.0])
    saved, meta = checkpoint.load_policy(run.checkpoints / checkpoint.BEST)
    assert (meta["step"], meta["steps"]) == (30, [10, 30])
    rows = {name: tensor[:, 0].tolist() for name, tensor in saved.items()}
    assert rows == {"actor": [10.0, 30.0], "critic": [10.0, 10.0, 30.0, 30.0]}


def _scored(step: int, scores: tuple[float, float] = (1.0, 1.0)) -> records.EvalResult:
    returns, one = np.array(scores)[:, None], np.ones((2, 1))
    return records.EvalResult(step, returns, one, None, one > 1, None, "x", (0, 1), 1, 1, "none", 0.0)


def test_steps_made_at_once_take_no_more_than_half_a_second_however_fast_they_are(tmp_path: Path, monkeypatch):
    made: list[float] = []

    def quick(cfg: Any, run: RunDir, state: Any, *_: Any):
        def run_steps(count: int) -> None:
            started = time.perf_counter()
            time.sleep(0.01 * count)
            state.step.add_(count)
            made.append(time.perf_counter() - started)

        return run_steps

    monkeypatch.setattr(loop, "patient_stepper", quick)
    train(tiny(tmp_path, steps=200, log_every=1000, save_every=0))
    assert len(made) > 5 and 0.2 < max(made) < 1.5 * loop.CHUNK_SECONDS, made
