"""Rollouts in processes of their own: what one raises is told, and none outlives what it was started for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from eval_cases import config, group, runs, spec, tensors, untrained
from families import family
from run_cases import wait_for
from threadpoolctl import threadpool_info, threadpool_limits

from gtp_fast.errors import UsageError
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.failures import RolloutError
from gtp_fast.evaluation.rollout import ProcessLostError, one_thread, spread
from gtp_fast.evaluation.worker import Evaluator

POLICY = untrained()


def _evaluate_here(folder: Path, workers: int) -> None:
    evaluate_policy(POLICY, spec("Lasting", folder=str(folder)), 7, workers=workers)


def _evaluate_beside(folder: Path, workers: int) -> None:
    evaluator = Evaluator(config(), spec("Lasting", folder=str(folder)), episodes=7, seed=0, workers=workers)
    for step in (10, 20):  # the second is unread when the process ends
        evaluator.submit(step, tensors(config()))
    time.sleep(600)


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
    together = multiprocessing.get_context("fork").Barrier(2, timeout=60)

    def task(index: int) -> int:
        (tmp_path / str(index)).touch()
        together.wait()
        found = len(list(tmp_path.iterdir()))
        together.wait()  # both have counted
        (tmp_path / str(index)).unlink()
        return found

    assert spread(task, 6, 2) == [2] * 6


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_environment_raises_is_told_in_one_line_with_its_traceback_beside_it(workers):
    before = _children()
    line = r"eval_cases:gtp_fast_tests/Failing-v0: ZeroDivisionError: the robot fell apart \(eval_cases\.py:\d+\)"
    with pytest.raises(RolloutError, match=rf"^{line}$") as error:
        evaluate_policy(POLICY, spec("Failing", way="raise"), episodes=7, workers=workers)
    assert "in step\n" in error.value.trace and error.value.trace.startswith("Traceback")
    assert set(_children()) <= set(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_that_leaves_python_ends_neither_a_run_nor_a_command(workers):
    with pytest.raises(RolloutError, match=r"Breaking-v0: SystemExit: 0 \(eval_cases\.py:\d+\)"):
        evaluate_policy(POLICY, spec("Breaking", where="exit"), episodes=7, workers=workers)


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
@pytest.mark.parametrize(
    ("evaluate", "workers"),
    [(_evaluate_here, 3), (_evaluate_beside, 3), pytest.param(_evaluate_beside, 1, marks=pytest.mark.long)],
    ids=["evaluation", "worker of a training", "worker of a training that steps by itself"],
)
def test_processes_in_the_middle_of_rollouts_end_with_their_killed_parent(tmp_path: Path, evaluate, workers: int):
    def stepping() -> list[int]:
        return [int(file.name) for file in tmp_path.iterdir()]

    parent = multiprocessing.get_context("fork").Process(target=evaluate, args=(tmp_path, workers))
    parent.start()
    try:
        wait_for(lambda: len(stepping()) == workers)
        assert all(map(runs, stepping()))
        parent.kill()
        parent.join()
        wait_for(lambda: not any(map(runs, stepping())), seconds=5)
    finally:
        parent.kill()
        for pid in filter(runs, stepping()):
            os.kill(pid, signal.SIGKILL)


def _evaluate_a_locked_one(folder: Path, workers: int) -> None:
    (folder / "hung").touch()
    case = spec("Hanging", file=str(folder / "hung"), where="first step", locked=True)
    evaluator = Evaluator(config(), case, episodes=7, seed=0, workers=workers)
    evaluator.submit(10, tensors(config()))
    wait_for(lambda: evaluator.poll() or evaluator._worker.silence.seconds > 1.0 < evaluator._worker.silence.count)
    (folder / str(evaluator._worker.process.pid)).touch()
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a process with its parent")
@pytest.mark.parametrize("workers", family([1, 2], quick=[2]))
def test_processes_that_keep_pythons_lock_end_with_their_killed_parent_too(tmp_path: Path, workers: int):
    parent = multiprocessing.get_context("fork").Process(target=_evaluate_a_locked_one, args=(tmp_path, workers))
    parent.start()
    worker = int(wait_for(lambda: [file.name for file in tmp_path.iterdir() if file.name != "hung"])[0])
    processes = group(worker)
    try:
        assert len(processes) >= workers
        parent.kill()
        parent.join()
        wait_for(lambda: not any(map(runs, processes)), seconds=5)
    finally:
        for pid in filter(runs, processes):
            os.kill(pid, signal.SIGKILL)


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_rollouts_hold_blas_to_one_thread_and_give_back_what_it_had():
    with threadpool_limits(2, user_api="blas"):
        with one_thread():
            assert _blas_threads() == {1} and spread(lambda _: list(_blas_threads()), 2, 2) == [[1], [1]]
        assert _blas_threads() == {2}
