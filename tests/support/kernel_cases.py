"""What the tests of the kernels share: a state and its launches, the step's draws in float64, and the tolerances.

A kernel's twin is the function of the reference path, called in float64. Tolerances are of norms: an operand rounded to
p bits errs by at most 2^-(p+1) of itself, a sum of independent such errors by about as much of the sum, and a value
passes five products on its way from the input to a gradient: 8 unit roundings cover them all.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fused_cases import DEVICE, fused_config
from gtp_kernels import primitives
from gtp_kernels.launch import Tuning, tuned_for
from learn_cases import buffer_of, transitions
from torch import Tensor

from gtp_fast import algorithms, rng
from gtp_fast.algorithms.fused import Binding
from gtp_fast.algorithms.networks import actor_layout, critic_layout, views
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.data.replay import Batch, ReplayBuffer

UNIT = {"fp32": 2.0**-20, "tf32": 2.0**-11, "bf16": 2.0**-8}  # fp32: sums of hundreds of terms, fast exponentials
TOLERANCE = 8.0
# (observations, actions, batch): smaller and larger than a chunk of 32 columns, and batches that fill no block.
SIZES = [
    pytest.param((5, 3, 16), id="5-3-16", marks=pytest.mark.long),
    pytest.param((37, 9, 21), id="37-9-21"),
    pytest.param((2, 1, 7), id="2-1-7"),
]
PRECISIONS = ["fp32", "tf32", "bf16"]


class Case:
    """A state as training could have left it, its launches, and the batch that its next step draws, in float64."""

    def __init__(self, sizes: tuple[int, int, int] = (5, 3, 16), shapes: Tuning | None = None, **changes):
        obs_dim, self.action_dim, batch = sizes
        self.cfg: TrainConfig = fused_config(batch_size=batch, seeds=2, **changes)
        self.buffer = buffer_of(self.cfg, transitions(obs_dim=obs_dim, action_dim=self.action_dim), DEVICE)
        self.state: TrainState = algorithms.init_state(self.cfg, obs_dim, self.action_dim, DEVICE)
        self.state.step.fill_(7)
        generator = torch.Generator().manual_seed(0)
        for net in (self.state.actor, self.state.critic):
            if net is not None:  # the EMA copies must not be the parameters
                net.ema.mul_(1.0 + 0.2 * torch.rand(net.ema.shape, generator=generator).to(DEVICE))
        self.bind = Binding(self.cfg, self.state, self.buffer, shapes or tuned_for(self.cfg.hidden, batch, 0))
        self.layouts = [f(obs_dim, self.action_dim, self.cfg.hidden) for f in (actor_layout, critic_layout)]
        self.words = self._words()
        index = primitives.integer_below(self.words[rng.INDEX][..., 0], self.buffer.size)
        double = replace(self.buffer, rows=self.buffer.rows.double())
        self.batch: Batch = ReplayBuffer.gather(double, index)

    def _words(self) -> dict[int, Tensor]:
        batch = self.cfg.batch_size
        rows = {rng.ACTION_NOISE: batch, rng.TARGET_NOISE: self.bind.next_rows}
        rows |= {rng.VALUE_NOISE: batch * self.cfg.value_samples}
        counts = {stream: rng.counters_for_normals(count, self.action_dim) for stream, count in rows.items()}
        keys = rng.seed_keys(member_seeds(self.cfg), DEVICE)
        return rng.random_bits(rng.plan({rng.INDEX: batch} | counts, DEVICE), keys, self.state.step)

    def normals(self, stream: int, rows: int) -> Tensor:
        """Return the normals of a stream, float64 (S, rows, A)."""
        return rng.normals(self.words[stream], rows, self.action_dim).double()

    def parameters(self, net: str, part: str = "param") -> dict[str, Tensor]:
        """Return the parameters of "actor" or "critic" by name, as float64 leaves."""
        flat = getattr(getattr(self.state, net), part).double().requires_grad_()
        self.leaf = flat
        return views(flat, self.layouts[net == "critic"])

    def near(self, found: Tensor, expected: Tensor, precision: str, times: float = 1.0, name: str = "") -> None:
        """Assert that a result is near its twin: the norm of the difference, as a share of the twin's norm.

        Args: times, how many tolerances are allowed.
        """
        share = (found.double() - expected).norm() / expected.norm()
        assert share < times * TOLERANCE * UNIT[precision], (name, float(share))
