"""The worker overlaps, survives, ends with its parent, and agrees with a rollout here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import config, runs, spec, tensors, within

from gtp_fast.data import catalog
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.worker import EvaluationError, Evaluator
from gtp_fast.policy.policy import Policy

HOPPER = catalog.resolve("Hopper-v5")
PARENT = """
import sys, time
from eval_cases import config, spec, tensors
from gtp_fast.evaluation.worker import Evaluator
evaluator = Evaluator(config(), spec("Endless", marker=sys.argv[1]), episodes=1, seed=0)
for step in (10, 20):
    evaluator.submit(step, tensors(config()))
print(evaluator._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def evaluator():
    running = Evaluator(config(11), HOPPER, episodes=2, seed=0)
    yield running
    running.close()


def _all(evaluator):
    results = []
    for _ in range(600):
        results += evaluator.poll(wait=0.1)
        if not evaluator.pending():
            return results
    raise AssertionError("the worker did not answer within a minute")


@pytest.mark.slow
def test_the_worker_gives_what_a_rollout_here_gives_and_submitting_does_not_wait(evaluator):
    snapshot = tensors(config(11))
    started = time.monotonic()
    for step in (10, 20, 30):
        evaluator.submit(step, snapshot)
    assert time.monotonic() - started < 1.0 and list(evaluator.pending()) == [10, 20, 30]
    results = _all(evaluator)
    here = evaluate_policy(Policy(config(11), snapshot), HOPPER, 2, seed=0, step=10)
    assert [result.step for result, _ in results] == [10, 20, 30]
    assert np.array_equal(results[0][0].returns_SE, here.returns_SE)
    assert torch.equal(results[0][1]["actor"], snapshot["actor"])


@pytest.mark.slow
def test_a_killed_worker_is_started_again_once(evaluator):
    evaluator.submit(10, tensors(config(11)))
    os.kill(evaluator._process.pid, signal.SIGKILL)
    assert [result.step for result, _ in _all(evaluator)] == [10]
    evaluator.submit(20, tensors(config(11)))
    os.kill(evaluator._process.pid, signal.SIGKILL)
    with pytest.raises(EvaluationError, match="died twice"):
        _all(evaluator)


@pytest.mark.slow
def test_a_failure_in_the_worker_is_an_error_here_with_its_words():
    failing = Evaluator(config(5), HOPPER, episodes=1, seed=0)
    failing.submit(10, tensors(config(5)))
    with pytest.raises(
        EvaluationError, match=r"has observations of shape \(11,\) but the data have 5 numbers"
    ) as error:
        _all(failing)
    assert "Traceback" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether a process runs")
def test_a_worker_in_the_middle_of_a_rollout_ends_with_its_killed_parent(tmp_path: Path):
    marker = tmp_path / "began"
    code = [sys.executable, "-c", PARENT, str(marker)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(code, stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        try:
            assert within(60, marker.exists) and runs(worker)
            parent.kill()
            parent.wait()
            assert within(5, lambda: not runs(worker))
        finally:
            parent.kill()
            if runs(worker):
                os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["working-directory", "PYTHONPATH"])
def test_files_of_the_user_shadow_no_module_of_the_worker(tmp_path: Path, monkeypatch, where):
    for name in ("json", "torch", "random", "gtp_fast", "selectors"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    # The parent's own list, which stands for itself: without the entry of python -c that means any directory.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    if where == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    evaluator = Evaluator(config(), spec("Small"), episodes=1, seed=0)
    evaluator.submit(10, tensors(config()))
    try:
        assert [result.returns_SE.tolist() for result, _ in _all(evaluator)] == [[[8.0], [8.0]]]
    finally:
        evaluator.close()


@pytest.mark.slow
def test_an_episode_that_diverges_in_the_worker_is_a_result_with_a_note():
    evaluator = Evaluator(config(), spec("Diverging", way="nan"), episodes=2, seed=0)
    evaluator.submit(10, tensors(config()))
    try:
        [(result, _)] = _all(evaluator)
    finally:
        evaluator.close()
    assert result.lengths_SE.tolist() == [[8, 3], [8, 3]] and "episode 1" in result.notes[0]
