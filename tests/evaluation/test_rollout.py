"""Rollouts in processes of their own: what one raises is told, and none outlives what it was started for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from eval_cases import config, runs, spec, tensors, within
from threadpoolctl import threadpool_info, threadpool_limits

from gtp_fast.errors import UsageError
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.rollout import ProcessLostError, RolloutError, one_thread, spread
from gtp_fast.policy.policy import Policy

POLICY = Policy(config(), tensors(config()))
PARENT = """
import sys
from eval_cases import config, spec, tensors
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.policy.policy import Policy
evaluate_policy(Policy(config(), tensors(config())), spec("Lasting", folder=sys.argv[1]), 7, workers=3)
"""
EVALUATING = """
import sys, time
from eval_cases import config, spec, tensors
from gtp_fast.evaluation.worker import Evaluator
evaluator = Evaluator(config(), spec("Lasting", folder=sys.argv[1]), episodes=7, seed=0, workers=3)
evaluator.submit(10, tensors(config()))
time.sleep(600)
"""


def _children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


def test_answers_come_in_the_order_of_the_tasks_whichever_ends_first():
    def task(index: int) -> list[int]:
        time.sleep(0.05 * (5 - index) if index < 3 else 0)
        return [index, os.getpid()]

    answers = spread(task, 6, 3)
    assert [index for index, _ in answers] == list(range(6))
    assert len({pid for _, pid in answers} | {os.getpid()}) == 7


def test_no_more_tasks_run_at_a_time_than_there_are_workers(tmp_path: Path):
    def task(index: int) -> int:
        (tmp_path / str(index)).touch()
        found, until = 1, time.monotonic() + 2.0
        while found < 2 and time.monotonic() < until:  # the other one may be long in coming
            time.sleep(0.05)
            found = len(list(tmp_path.iterdir()))
        (tmp_path / str(index)).unlink()
        return found

    assert max(spread(task, 6, 2)) == 2


def test_what_an_environment_raises_is_told_with_its_traceback():
    before = _children()
    with pytest.raises(RolloutError, match=r"ZeroDivisionError: the robot fell apart") as error:
        evaluate_policy(POLICY, spec("Failing", way="raise"), episodes=7, workers=2)
    assert "eval_cases.py" in str(error.value) and set(_children()) <= set(before)


def test_an_error_for_the_user_keeps_its_class_and_words():
    with pytest.raises(UsageError, match=r"^gtp_fast_tests/Diverging|^eval_cases:.*NaN or Inf at its reset"):
        evaluate_policy(POLICY, spec("Diverging", way="reset"), episodes=7, workers=2)


def test_a_killed_process_is_an_error_that_ends_the_others():
    before = _children()
    with pytest.raises(ProcessLostError, match=r"ended in the middle of a rollout \(exit code -9\); is memory short\?"):
        evaluate_policy(POLICY, spec("Failing", way="kill"), episodes=20, workers=3)
    assert set(_children()) <= set(before)


def test_an_episode_that_diverges_in_a_process_is_marked():
    result = evaluate_policy(POLICY, spec("Diverging", way="nan"), episodes=6, workers=2)
    assert result.lengths_SE.tolist() == [[8, 3, 8, 3, 8, 3]] * 2
    assert result.diverged_SE.tolist() == [[False, True] * 3] * 2 and np.isfinite(result.figures).all()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether a process runs")
@pytest.mark.parametrize("code", [PARENT, EVALUATING], ids=["evaluation", "worker of a training"])
def test_processes_in_the_middle_of_rollouts_end_with_their_killed_parent(tmp_path: Path, code: str):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def stepping() -> list[int]:
        return [int(file.name) for file in tmp_path.iterdir()]

    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environ) as parent:
        try:
            assert within(60, lambda: len(stepping()) == 3) and all(map(runs, stepping()))
            parent.kill()
            parent.wait()
            assert within(5, lambda: not any(map(runs, stepping())))
        finally:
            parent.kill()
            for pid in filter(runs, stepping()):
                os.kill(pid, signal.SIGKILL)


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_rollouts_hold_blas_to_one_thread_and_give_back_what_it_had():
    with threadpool_limits(2, user_api="blas"):
        with one_thread():
            assert _blas_threads() == {1} and spread(lambda _: list(_blas_threads()), 2, 2) == [[1], [1]]
        assert _blas_threads() == {2}
