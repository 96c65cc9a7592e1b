"""A training on synthetic data that every measurement of the step shares.

obs 17, action 6, batch 256, as HalfCheetah.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_fast import algorithms
from gtp_fast.algorithms import gtp, updates
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.policy_config import of_run
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.policy.policy import Policy

if TYPE_CHECKING:
    from gtp_kernels.launch import Tuning

    from gtp_fast.algorithms.fused import FusedStep

OBS_DIM, ACTION_DIM, ROWS = 17, 6, 10_000


def config(**changes: Any) -> TrainConfig:
    """Return the settings of a measured run: the defaults on the CPU, eta 5 and 2M steps, with changes.

    Another algorithm than GTP has the settings of its own file in configs/algorithms.
    """
    defaults = {"env": "bench", "steps": 2_000_000, "device": "cpu", "backend": "eager", "precision": "fp32"}
    algo = changes.get("algo", "gtp")
    own = {"eta": 5.0} if algo == "gtp" else asdict(run_settings({"env": "HalfCheetah-v5", "algo": algo}))
    return TrainConfig(**(own | defaults | changes))


def transitions(rows: int = ROWS) -> SimpleNamespace:
    """Return random transitions with the fields of `dataset.Transitions` that the buffer reads."""
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        obs_ND=rng.normal(size=(rows, OBS_DIM)).astype(np.float32),
        action_NA=rng.uniform(-1, 1, size=(rows, ACTION_DIM)).astype(np.float32),
        reward_N=rng.normal(size=rows).astype(np.float32),
        next_obs_ND=rng.normal(size=(rows, OBS_DIM)).astype(np.float32),
        terminal_N=rng.random(rows) < 0.01,
    )


def training(cfg: TrainConfig, rows: int = ROWS) -> tuple[TrainState, Callable[[int], None]]:
    """Return a fresh state on cfg.device and the function that makes n steps on it; beyond ROWS, rows repeat."""
    data = transitions(min(rows, ROWS))
    buffer = ReplayBuffer.from_transitions(data, cfg, cfg.device)  # pyright: ignore[reportArgumentType]
    if rows > ROWS:
        buffer = replace(buffer, rows=buffer.rows.repeat(-(-rows // ROWS), 1)[:rows])
    state = algorithms.of(cfg).init_state(cfg, OBS_DIM, ACTION_DIM, cfg.device)
    return state, stepper(cfg, state, buffer)


def fused_step(cfg: TrainConfig, shapes: Tuning | None) -> FusedStep:
    """Return a fused step on cfg.device; on the CPU it can be compiled ahead of time or interpreted."""
    from gtp_fast.algorithms.fused import make_step

    buffer = ReplayBuffer.from_transitions(transitions(), cfg, cfg.device)  # pyright: ignore[reportArgumentType]
    return make_step(cfg, gtp.init_state(cfg, OBS_DIM, ACTION_DIM, cfg.device), buffer, shapes)


def policy(cfg: TrainConfig, state: TrainState, obs_dim: int, action_dim: int) -> Policy:
    """Return the policy that acts with a state's EMA actors, on their device."""
    return Policy(of_run(cfg, obs_dim, action_dim), updates.policy_tensors(state), state.step.device)
