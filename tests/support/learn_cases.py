"""A small data set and a small configuration that the tests of the LEARN room share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from torch import Tensor

from gtp_fast.config import TrainConfig
from gtp_fast.data.replay import ReplayBuffer

OBS_DIM, ACTION_DIM = 5, 3


def small_config() -> TrainConfig:
    """Two members, width 32, batch 16: every path of the default algorithm, the paper's form."""
    return TrainConfig(
        env="x",
        steps=1_000,
        batch_size=16,
        hidden=32,
        seeds=2,
        lr=1e-3,
        eta=3.0,
        grad_norm=1.0,
        sampling_steps=3,
        weighting="paper",
        sigma_max=80.0,
        s1=1280,
        ema_every=5,
        ema_start=4,
        device="cpu",
        backend="eager",
    )


def transitions(
    size: int = 300, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM, seed: int = 0
) -> SimpleNamespace:
    """Random transitions with the fields of `dataset.Transitions` that the buffer reads."""
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        obs_ND=rng.normal(size=(size, obs_dim)).astype(np.float32),
        action_NA=rng.uniform(-1, 1, size=(size, action_dim)).astype(np.float32),
        reward_N=rng.normal(size=size).astype(np.float32),
        next_obs_ND=rng.normal(size=(size, obs_dim)).astype(np.float32),
        terminal_N=rng.random(size) < 0.2,
    )


def buffer_of(cfg: TrainConfig, data: SimpleNamespace | None = None, device: str = "cpu") -> ReplayBuffer:
    """Pack the transitions for a configuration."""
    return ReplayBuffer.from_transitions(data or transitions(), cfg, device)  # pyright: ignore[reportArgumentType]


def went_alike(ours: Tensor, theirs: Tensor, start: Tensor) -> bool:
    """Say whether two trainings from one start ended together, within a thousandth of the way that they went.

    Float32 rounding grows over steps, and libraries sum products of other sizes in another order.
    """
    return bool((ours - theirs).norm() < 1e-3 * (theirs - start).norm())
