"""The worker overlaps, survives, and agrees with a rollout here; `test_rollout.py` kills its parent."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from eval_cases import config, group, runs, spec, tensors
from run_cases import wait_for

from gtp_fast.config import TrainConfig
from gtp_fast.data import catalog
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.errors import DataError, UsageError
from gtp_fast.evaluation import silence
from gtp_fast.evaluation.environments import with_limit
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.worker import Evaluator, Failed, Worker, workers_beside
from gtp_fast.policy.policy import Policy

_long = partial(pytest.param, marks=pytest.mark.long)
HOPPER = catalog.resolve("Hopper-v5")


def _all(evaluator):
    results = []
    for _ in range(600):
        results += evaluator.poll(wait=0.1)
        if not evaluator.pending():
            return results
    raise AssertionError("the worker did not answer within a minute")


def _kill(evaluator):
    os.kill(evaluator._worker.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def kept() -> Iterator[list[Worker]]:
    """The worker that the test before left: to start one, which imports torch, takes two seconds of CPU time."""
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(kept: list[Worker]) -> Worker:
    """A worker that runs."""
    if not kept or kept[0].ended():
        kept[:] = [Worker()]
    return kept[0]


@pytest.fixture
def started(kept: list[Worker], worker: Worker) -> Iterator[Callable[..., Evaluator]]:
    """Return a function that makes an evaluator, for a test that has one; its worker runs, as training's does."""
    made: list[Evaluator] = []

    def make(case: DataSpec, episodes: int = 1, workers: int = 1, obs_dim: int = 4) -> Evaluator:
        made.append(Evaluator(config(obs_dim), case, episodes, 0, workers, worker))
        return made[0]

    yield make
    (evaluator,) = made
    if evaluator.pending() or evaluator._worker is None:
        evaluator.close()
    kept[:] = [evaluator._worker] if evaluator._worker else []


@pytest.mark.slow
def test_the_worker_gives_what_a_rollout_here_gives_and_submitting_does_not_wait():
    snapshot = tensors(config(11))
    with closing(Evaluator(config(11), HOPPER, episodes=2, seed=0)) as evaluator:
        began = time.monotonic()
        for step in (10, 20, 30):
            evaluator.submit(step, snapshot)
        assert time.monotonic() - began < 1.0 and list(evaluator.pending()) == [10, 20, 30]
        results = _all(evaluator)
    here = evaluate_policy(Policy(config(11), snapshot), HOPPER, 2, seed=0, step=10)
    assert [result.step for result, _ in results] == [10, 20, 30]
    assert np.array_equal(results[0][0].returns_SE, here.returns_SE)
    assert torch.equal(results[0][1]["actor"], snapshot["actor"])


@pytest.mark.slow
def test_a_killed_worker_is_started_again_once_and_an_episode_that_diverges_there_is_a_result_with_a_note():
    with closing(Evaluator(config(), spec("Diverging", way="nan"), episodes=2, seed=0)) as evaluator:
        evaluator.submit(10, tensors(config()))
        _kill(evaluator)
        [(result, _)] = _all(evaluator)
        assert result.step == 10 and result.lengths_SE.tolist() == [[8, 3], [8, 3]] and "episode 1" in result.notes[0]


@pytest.mark.long
def test_an_evaluation_whose_worker_dies_twice_has_failed_and_the_next_has_a_new_worker(started):
    evaluator = started(spec("Failing", way="kill"), episodes=7)
    evaluator.submit(10, tensors(config()))
    [(failed, _)] = _all(evaluator)
    assert failed == Failed(10, failed.reason) and "its worker died 2 times (exit code -9)" in failed.reason
    evaluator._asked["episodes"] = 6  # the seventh kills
    evaluator.submit(20, tensors(config()))
    [(result, _)] = _all(evaluator)
    assert result.step == 20 and result.returns_SE.shape == (2, 6)


@pytest.mark.parametrize(
    ("device", "asked", "there", "expected"),
    [("cpu", 0, 8, 1), ("cuda", 0, 8, 7), ("cuda", 0, 1, 1), ("cuda", 3, 8, 3), ("cpu", 3, 8, 3)],
)
def test_beside_a_cpu_one_process_steps_environments_and_beside_a_gpu_all_cores_but_one(
    monkeypatch, device, asked, there, expected
):
    monkeypatch.setattr("gtp_fast.evaluation.worker.cores", lambda: there)
    assert workers_beside(TrainConfig(env="x", device=device, eval_workers=asked)) == expected


@pytest.mark.slow
def test_a_policy_that_waits_does_not_change_with_the_one_that_trains(started):
    evaluator, trains = started(spec("Small")), tensors(config())
    before = {name: tensor.clone() for name, tensor in trains.items()}
    evaluator.submit(10, trains)
    for tensor in trains.values():
        tensor.add_(1.0)
    waits = evaluator.pending()[10]
    assert before and all(torch.equal(waits[name], tensor) for name, tensor in before.items())
    assert [result.step for result, _ in _all(evaluator)] == [10]


@pytest.mark.slow
def test_a_worker_that_died_between_evaluations_costs_none_of_them(started):
    evaluator = started(spec("Small"))
    evaluator.submit(10, tensors(config()))
    _all(evaluator)
    evaluator._worker.process.kill()
    evaluator._worker.process.wait()
    evaluator.submit(20, tensors(config()))
    assert [result.step for result, _ in _all(evaluator)] == [20] and evaluator._tries == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ['{"step": 10, "ret', "[]", "17", '{"step": 10}', '{"failed": 3}', '{"step": "x"}', "\0"], ids=repr
)
def test_a_damaged_line_of_the_worker_is_a_failure_and_the_next_evaluation_is_made(line):
    with closing(Evaluator(config(), spec("Small"), episodes=1, seed=0)) as evaluator:
        evaluator.submit(10, tensors(config()))
        evaluator._worker.answers.put(line)
        [(failed, _)] = evaluator.poll()
        assert failed.step == 10 and "its worker answered with a damaged line" in failed.reason
        if line == "[]":  # once is enough: a process starts
            evaluator.submit(20, tensors(config()))
            assert [result.step for result, _ in _all(evaluator)] == [20]


@pytest.mark.slow
def test_what_fails_in_the_worker_is_told_in_one_line_with_its_traceback_beside_it_and_evaluations_go_on(started):
    evaluator = started(spec("Failing", way="raise"), episodes=7)
    for step in (10, 20):
        evaluator.submit(step, tensors(config()))
    found = [failed for failed, _ in _all(evaluator)]
    assert [failed.step for failed in found] == [10, 20]
    line = r"eval_cases:gtp_fast_tests/Failing-v0: ZeroDivisionError: the robot fell apart \(eval_cases\.py:\d+\)"
    assert all(re.fullmatch(line, failed.reason) for failed in found)
    assert all(failed.trace.startswith("Traceback") and failed.trace.count("\n") > 5 for failed in found)


def test_evaluations_that_wait_for_a_worker_that_hangs_are_bounded(monkeypatch):
    monkeypatch.setattr("gtp_fast.evaluation.worker.MOST_PENDING", 3)
    with closing(Evaluator(config(), spec("Small"), episodes=1, seed=0)) as evaluator:
        for step in range(1, 7):
            evaluator.submit(step, tensors(config()))
        assert [failed.step for failed, _ in evaluator._ended] == [4, 5, 6] and list(evaluator.pending()) == [1, 2, 3]


def test_policies_that_wait_are_bounded_by_their_bytes_too_but_one_may_wait_whatever_its_size(monkeypatch):
    monkeypatch.setattr("gtp_fast.evaluation.worker.MOST_PENDING_BYTES", 1_000)
    with closing(Evaluator(config(), spec("Small"), episodes=1, seed=0)) as evaluator:
        for step in (10, 20):
            evaluator.submit(step, {"actor": torch.zeros(300)})
        [(failed, _)] = evaluator._ended
        assert failed.step == 20 and "were waiting for theirs already; raise --eval-every" in failed.reason
        assert list(evaluator.pending()) == [10]


@pytest.mark.long
def test_a_pipe_that_breaks_in_the_middle_of_a_request_costs_no_evaluation():
    large = {"actor": tensors(config())["actor"], "unused": torch.zeros(20_000_000)}  # a pipe holds 64 KiB
    with closing(Evaluator(config(), spec("Small"), episodes=1, seed=0)) as evaluator:
        evaluator.submit(10, large)
        _kill(evaluator)
        assert [result.step for result, _ in _all(evaluator)] == [10]


def test_threads_that_cannot_be_started_are_a_failure_of_the_evaluation(monkeypatch):
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    evaluator = Evaluator(config(), spec("Small"), episodes=1, seed=0)
    evaluator.submit(10, tensors(config()))
    [(failed, _)] = evaluator.poll()
    assert "its worker could not be started (can't start new thread)" in failed.reason


def test_a_worker_that_cannot_be_started_is_a_failure_of_each_evaluation(monkeypatch):
    def refused():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("gtp_fast.evaluation.worker.Worker", refused)
    evaluator = Evaluator(config(), spec("Small"), episodes=1, seed=0)
    for step in (10, 20):
        evaluator.submit(step, tensors(config()))
    found = [failed for failed, _ in evaluator.poll(wait=0.1)]
    assert [failed.step for failed in found] == [10, 20] and not evaluator.pending()
    assert "could not be started ([Errno 11] Resource temporarily unavailable)" in found[0].reason


@pytest.mark.slow
def test_the_worker_that_tries_the_environment_makes_the_evaluations_too(worker, started):
    (note,) = worker.check(spec("Small"), 4, 3, 1, None)
    assert "sets no time limit: an episode of an evaluation ends after 10,000 steps; --eval-max-steps N" in note
    evaluator = started(spec("Small"))
    evaluator.submit(10, tensors(config()))
    assert [result.returns_SE.tolist() for result, _ in _all(evaluator)] == [[[8.0], [8.0]]]
    assert evaluator._worker is worker


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "words", "kind"),
    [
        (spec("Small"), r"has observations of shape \(4,\) but the data have 5 numbers", DataError),
        (spec("Breaking", where="init"), r"cannot be built \(OSError: no port \(eval_cases.py:\d+\)\)", UsageError),
        (spec("Breaking", where="reset"), r"Breaking-v0: OSError: no port \(eval_cases.py:\d+\); mend", UsageError),
        (spec("Breaking", where="step"), r"Breaking-v0: OSError: no port \(eval_cases.py:\d+\); mend", UsageError),
        (spec("Breaking", where="exit"), r"Breaking-v0: SystemExit: 0 \(eval_cases.py:\d+\); mend", UsageError),
        (spec("Returning", way="nan at reset"), "gave an observation with NaN or Inf at its reset", UsageError),
        (spec("Returning", way="four"), r"its step\(\) returned a tuple of 4, expected five things", UsageError),
    ],
    ids=["size", "init", "reset", "step", "exit", "nan", "old step"],
)
def test_what_the_first_evaluation_would_meet_is_refused_before_training(worker, case, words, kind):
    with pytest.raises(kind, match=words) as error:
        worker.check(case, 4 if kind is UsageError else 5, 3, 1, None)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_environment_that_kills_its_worker_is_refused_before_training():
    with closing(Worker()) as worker, pytest.raises(UsageError, match="the worker that evaluates ended") as error:
        worker.check(spec("Breaking", where="kill"), 4, 3, 1, None)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_environment_that_only_this_process_knows_is_refused_with_what_to_type(worker):
    gymnasium.register("Mine-v0", "eval_cases:Small")
    gymnasium.register("Main-v0", "__main__:Small")
    for name, words in (("Mine", "pass --env eval_cases:Mine-v0"), ("Main", "a module, as my_envs.py")):
        case = replace(spec("Small"), eval_env=EvalEnv(f"{name}-v0"))
        with pytest.raises(UsageError, match=rf"{name}-v0 is registered in this process alone.*{words}"):
            worker.check(case, 4, 3, 1, None)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "locked"), [_long("init", False), _long("reset", False), ("first step", True)])
def test_an_environment_that_hangs_is_told_and_refused_before_training(tmp_path: Path, monkeypatch, where, locked):
    monkeypatch.setattr(silence, "SILENT_SECONDS", 3.0)
    said: list[str] = []
    with closing(Worker()) as worker, pytest.raises(UsageError) as error:
        worker.check(spec("Hanging", file=str(tmp_path), where=where, locked=locked), 4, 3, 1, None, said.append)
    silent = r"eval_cases:gtp_fast_tests/Hanging-v0 has answered no reset or step for \d s"
    assert re.fullmatch(rf"{silent}; after 3 s the run ends", said[-1]) and len(said) > 3
    assert re.fullmatch(
        rf"{silent}, as the run tried it; mend the environment, or pass .* without it", str(error.value)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "locked"), [_long(1, False), _long(1, True), (3, True)])
def test_an_evaluation_that_hangs_has_failed_and_the_next_has_a_new_worker(
    tmp_path: Path, monkeypatch, started, workers, locked
):
    hung = tmp_path / "hung"
    hung.touch()
    evaluator = started(spec("Hanging", file=str(hung), locked=locked), 11, workers)
    evaluator.submit(10, tensors(config()))
    heard = evaluator._worker.silence
    wait_for(lambda: evaluator.poll() or heard.count - heard.first >= 26)  # 6 built, 5 resets, 15 steps
    stepping = [pid for pid in group(evaluator._worker.process.pid) if runs(pid)]
    monkeypatch.setattr(silence, "SILENT_SECONDS", 1.0)
    [(failed, _)] = _all(evaluator)
    assert re.fullmatch(
        r"eval_cases:gtp_fast_tests/Hanging-v0 has answered no reset or step for 1 s, and its worker was ended; "
        r"mend the environment, or pass --eval-every 0 to train without it",
        failed.reason,
    )
    assert len(stepping) >= workers
    monkeypatch.setattr(silence, "SILENT_SECONDS", 60.0)
    wait_for(lambda: not any(map(runs, stepping)), seconds=5)
    hung.unlink()
    evaluator.submit(20, tensors(config()))
    assert [result.step for result, _ in _all(evaluator)] == [20]


@pytest.mark.slow
def test_an_environment_that_hangs_again_and_again_is_waited_for_twice(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.5)  # a worker's start is as silent
    with closing(Evaluator(config(), spec("Hanging", file=str(tmp_path)), 1, 0)) as evaluator:
        for step in (10, 20, 30, 40):
            evaluator.submit(step, tensors(config()))
        found = [failed for failed, _ in _all(evaluator)]
    assert [failed.step for failed in found] == [10, 20, 30, 40]
    assert ["did not answer in the 2 evaluations before it" in failed.reason for failed in found] == [False] * 2 + [
        True
    ] * 2


@pytest.mark.long
def test_a_long_evaluation_whose_environment_answers_is_waited_for(tmp_path: Path, monkeypatch, started):
    evaluator = started(with_limit(spec("Lasting", folder=str(tmp_path)), 110))
    evaluator.submit(10, tensors(config()))
    wait_for(lambda: evaluator.poll() or list(tmp_path.iterdir()))
    monkeypatch.setattr(silence, "SILENT_SECONDS", 1.0)
    began = time.monotonic()
    [(result, _)] = _all(evaluator)
    assert result.lengths_SE.tolist() == [[110], [110]] and time.monotonic() - began > 2.0


def test_a_process_that_was_stopped_meanwhile_has_not_been_silent(monkeypatch):
    now = iter([0.0, 2.0, 7200.0, 7201.0])
    monkeypatch.setattr(silence.time, "monotonic", lambda: next(now))
    heard = silence.Silence(lambda: 7)
    assert [heard.look() for _ in range(3)] == [2.0, 7.0, 8.0]


@pytest.mark.long
def test_a_killed_worker_whose_helper_keeps_its_pipe_open_is_started_again(tmp_path: Path, started):
    """A simulator's helper is a fork of the worker, and holds what the worker held."""
    evaluator = started(spec("Helped", folder=str(tmp_path)))
    evaluator.submit(10, tensors(config()))
    wait_for(lambda: evaluator.poll() or list(tmp_path.iterdir()))
    helper = int(next(tmp_path.iterdir()).name)
    _kill(evaluator)
    [(result, _)] = _all(evaluator)
    assert result.step == 10 and not runs(helper)


def test_a_module_that_trains_as_the_worker_imports_it_is_refused(monkeypatch):
    monkeypatch.setenv("GTP_FAST_EVALUATES", "1")
    with pytest.raises(UsageError, match="put the call that trains under if __name__ == '__main__'"):
        Worker()


@pytest.mark.slow
def test_files_of_the_user_shadow_no_module_of_the_worker(tmp_path: Path, monkeypatch):
    for name in ("json", "torch", "random", "gtp_fast", "selectors"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    # The parent's own list, which stands for itself: without the entry of python -c that means any directory.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with closing(Evaluator(config(), spec("Small"), episodes=1, seed=0)) as evaluator:
        evaluator.submit(10, tensors(config()))
        assert [result.returns_SE.tolist() for result, _ in _all(evaluator)] == [[[8.0], [8.0]]]
