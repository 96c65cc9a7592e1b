"""The worker overlaps, survives, and agrees with a rollout here; `test_rollout.py` kills its parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import config, spec, tensors

from gtp_fast.data import catalog
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.worker import EvaluationError, Evaluator
from gtp_fast.policy.policy import Policy

HOPPER = catalog.resolve("Hopper-v5")


def _all(evaluator):
    results = []
    for _ in range(600):
        results += evaluator.poll(wait=0.1)
        if not evaluator.pending():
            return results
    raise AssertionError("the worker did not answer within a minute")


def _kill(evaluator):
    os.kill(evaluator._process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_worker_gives_what_a_rollout_here_gives_and_submitting_does_not_wait():
    snapshot = tensors(config(11))
    with closing(Evaluator(config(11), HOPPER, episodes=2, seed=0)) as evaluator:
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
def test_a_killed_worker_is_started_again_once_and_an_episode_that_diverges_there_is_a_result_with_a_note():
    with closing(Evaluator(config(), spec("Diverging", way="nan"), episodes=2, seed=0)) as evaluator:
        evaluator.submit(10, tensors(config()))
        _kill(evaluator)
        [(result, _)] = _all(evaluator)
        assert result.step == 10 and result.lengths_SE.tolist() == [[8, 3], [8, 3]] and "episode 1" in result.notes[0]
        evaluator.submit(20, tensors(config()))
        _kill(evaluator)
        with pytest.raises(EvaluationError, match="died twice"):
            _all(evaluator)


@pytest.mark.slow
def test_a_failure_in_the_worker_is_an_error_here_with_its_words():
    failing = Evaluator(config(5), spec("Small"), episodes=1, seed=0)
    failing.submit(10, tensors(config(5)))
    words = r"has observations of shape \(4,\) but the data have 5 numbers"
    with pytest.raises(EvaluationError, match=words) as error:
        _all(failing)
    assert "Traceback" not in str(error.value)


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
