"""A whole run on the fused backend: train, save, resume, load the policy and act."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from run_cases import back_to

import gtp_fast
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the card's own tests are in test_fused_gpu.py")


def _train(folder: Path, **changes) -> gtp_fast.Result:
    settings = {"env": "multigoal-v0", "bc": False, "eta": 2.0, "steps": 4, "batch_size": 16, "hidden": 32}
    settings |= {"log_every": 2, "save_every": 2, "eval_every": 0, "seeds": 1, "backend": "fused", "threads": 1}
    return gtp_fast.train(run_dir=str(folder), **(settings | changes))


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.crash)])
def test_promise_2_a_fused_run_resumed_from_a_checkpoint_ends_bitwise_equal_and_acts(tmp_path: Path, precision):
    whole = _train(tmp_path / "whole", precision=precision)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    back_to(tmp_path / "cut", 2)
    resumed = _train(tmp_path / "cut", precision=precision)
    assert (whole.backend, whole.precision) == ("fused", precision) and resumed.steps == 4
    first, second = (RunDir(tmp_path / name) for name in ("whole", "cut"))
    states = [(run.checkpoint(4) / checkpoint.STATE).read_bytes() for run in (first, second)]
    assert states[0] == states[1]
    assert first.metrics.read_bytes() == second.metrics.read_bytes()
    assert abs(gtp_fast.load_policy(whole.run_dir).act([0.0, 0.0])).max() <= 1.0
