"""The K-step chain against the sampler in float64, and the batch that it writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fused_cases import DEVICE
from gtp_kernels import chain
from kernel_cases import PRECISIONS, SIZES, Case
from torch import Tensor

from gtp_fast import device, rng
from gtp_fast.algorithms import equations, updates


def _chain_inputs(case: Case) -> tuple[Tensor, Tensor]:
    backup, samples = updates.backup_samples(case.cfg), case.cfg.value_samples
    obs = torch.cat([case.batch.next_obs_SBD.repeat(1, backup, 1), case.batch.obs_SBD.repeat(1, samples, 1)], dim=1)
    noise = [case.normals(rng.TARGET_NOISE, case.bind.next_rows)]
    noise.append(case.normals(rng.VALUE_NOISE, case.cfg.batch_size * samples))
    return obs, torch.cat(noise, dim=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_chain_samples_what_its_twin_samples(sizes, precision):
    case = Case(sizes, precision=precision, value_samples=2)
    case.bind.chain()()
    obs, z = _chain_inputs(case)
    p = {name: tensor.detach() for name, tensor in case.parameters("actor", "ema").items()}
    expected = equations.sample_actions(p, obs, z, case.bind.grid.double(), case.cfg.sigma_data, case.cfg.sigma_min)
    # Noise of 80 standard deviations passes through three steps, and later steps multiply early rounding.
    case.near(case.bind.scratch["actions"], expected, precision, 3)


def test_the_chain_leaves_the_batch_behind_for_the_launches_after_it():
    case = Case()
    case.bind.chain()()
    rows = case.bind.scratch["batch"]
    left = replace(case.buffer, rows=rows.flatten(0, 1)).gather(
        torch.arange(rows[..., 0].numel()).view(2, -1).to(DEVICE)
    )
    for name in ("obs_SBD", "action_SBA", "reward_SB", "bootstrap_SB", "next_obs_SBD"):
        assert torch.equal(getattr(left, name).double(), getattr(case.batch, name)), name


def test_the_chain_takes_as_many_steps_as_the_door_lets_pass():
    assert chain.LARGEST_K.value == device.LARGEST_K
