"""Diffusion-QL: its schedule, its coin, and the steps it acts in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import tiny

import gtp_fast
from gtp_fast import rng
from gtp_fast.algorithms import dql
from gtp_fast.errors import UsageError
from gtp_fast.training.train import train


def test_the_schedule_is_that_of_the_paper_at_five_steps():
    constants = dql.diffusion(5, "cpu", torch.float64)
    # By hand: alpha_1 = exp(-0.02 - 0.198) and alpha_5 = exp(-0.02 - 1.782).
    assert constants.alpha_bar[0] == pytest.approx(np.exp(-0.218))
    assert constants.alpha_bar[4] == pytest.approx(np.exp(-0.1 - 0.198 * (1 + 3 + 5 + 7 + 9)))
    assert constants.spread[0] == 0.0 and constants.mean_t[0] == 0.0 and constants.mean_0[0] == pytest.approx(1.0)


def test_both_heads_are_climbed_over_the_steps():
    words = rng.random_bits(rng.plan({rng.INDEX: 1}, "cpu"), rng.seed_keys(list(range(64)), "cpu"), torch.tensor(5))
    assert 16 < int((words[rng.INDEX][:, 0, 3] >> 31).sum()) < 48


def test_a_diffusion_acts_in_the_steps_that_it_was_trained_with(tmp_path: Path):
    run = train(tiny(tmp_path, algo="dql", sampling_steps=3)).run_dir
    with pytest.raises(UsageError, match="in the 3 steps of its training, not in --sampling-steps 5"):
        gtp_fast.load_policy(run, sampling_steps=5)
