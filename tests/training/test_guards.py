"""What is not finite stops the run, and is named: step, quantity, seed, advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gtp_fast.errors import DivergedError
from gtp_fast.training import guards


def test_the_earliest_bad_value_is_named_with_seed_and_advice(tmp_path: Path):
    bad = [[-1, 40], [30, -1]]
    with pytest.raises(DivergedError, match="actor_loss of seed 8 was not finite at step 30"):
        guards.check_finite(bad, ("actor_loss", "q"), [7, 8], tmp_path, tmp_path / "ckpt")
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert (failure["step"], failure["quantity"], failure["seed"]) == (30, "actor_loss", 8)
    assert failure["last_good_checkpoint"] == str(tmp_path / "ckpt") and failure["advice"]


@pytest.mark.parametrize(("rows", "row", "seed"), [(2, 1, 8), (4, 1, 7), (4, 2, 8)], ids=["actor", "head 2", "head 1"])
def test_a_bad_parameter_is_named_though_every_metric_was_finite(tmp_path: Path, rows, row, seed):
    param = torch.zeros(rows, 5)
    param[row, 3] = float("inf")
    tensors = {"step": torch.tensor(9), "good": torch.ones(rows, 5), "critic.param": param}
    with pytest.raises(DivergedError, match=f"critic.param of seed {seed} was not finite at step 9"):
        guards.check_tensors(tensors, 9, [7, 8], tmp_path, None)
    assert json.loads((tmp_path / "failure.json").read_text())["quantity"] == "critic.param"


def test_a_healthy_run_passes(tmp_path: Path):
    guards.check_finite([[-1, -1]], ("a", "b"), [0], tmp_path, None)
    guards.check_tensors({"step": torch.tensor(3), "a": torch.ones(2, 2)}, 3, [0, 1], tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_a_failure_that_cannot_be_written_still_stops_the_run(tmp_path: Path):
    with pytest.raises(DivergedError, match="q of seed 7 was not finite at step 3"):
        guards.check_finite([[3]], ("q",), [7], tmp_path / "gone", None)
