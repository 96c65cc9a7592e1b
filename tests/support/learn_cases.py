"""A small data set, and the settings of every algorithm and variant at a small size."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from gtp_fast import algorithms
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, validate
from gtp_fast.data.replay import ReplayBuffer

OBS_DIM, ACTION_DIM = 5, 3

FLOW: dict[str, Any] = {"process": "flow", "sigma_max": 1.0, "rho": 1.0}
STABLE: dict[str, Any] = {"weighting": "stable", "sigma_max": 10.0, "s1": 40, "ema_every": 1, "ema_start": 0}
CAC: dict[str, Any] = {"algo": "cac", "sampling_steps": 2, "eta": 1.0}
DQL: dict[str, Any] = {"algo": "dql", "sampling_steps": 4, "eta": 0.7}
FQL: dict[str, Any] = {"algo": "fql", "layers": 2, "grad_norm": 0.0, "alpha": 3.0}
IQL: dict[str, Any] = {"algo": "iql", "sampling_steps": 1, "tau": 0.05}
TD3BC: dict[str, Any] = {"algo": "td3bc", "sampling_steps": 1, "alpha": 2.5, "tau": 0.05}
# Settings of each algorithm at the small size; a name without a dash is an algorithm as it is published.
CASES: dict[str, dict[str, Any]] = {
    "gtp": {},
    "gtp-stable": STABLE,
    "gtp-bc": {"bc": True},
    "gtp-max-q-backup": {"max_q_backup": True, "sampling_steps": 2},
    "gtp-consistency": {"actor_loss": "consistency"},
    "gtp-denoiser": {"actor_loss": "denoiser", "weighting": "stable"},
    "gtp-heun": {"actor_loss": "solver"},
    "gtp-euler": STABLE | {"actor_loss": "solver", "solver": "euler", "solver_steps": 2},
    "gtp-linear-q": {"actor_loss": "linear-q", "lambda_q": 0.5},
    "gtp-shortcut": {"actor_loss": "shortcut"},
    "gtp-meanflow": {"actor_loss": "meanflow"},
    "gtp-flow": FLOW | {"weighting": "stable"},
    "gtp-flow-meanflow": FLOW | {"actor_loss": "meanflow"},
    "gtp-at-zero": {"compare_at_zero": True},
    "gtp-batch-mean": {"value": "behaviour", "weight_norm": True},
    "gtp-expectile": {"value": "expectile"},
    "gtp-lognormal": {"times": "lognormal", "steps_schedule": "fixed:40"},
    "cac": CAC,
    "cac-stable-one-step": CAC | STABLE | {"sampling_steps": 1},
    "cac-bc": CAC | {"bc": True},
    "cac-max-q-backup-five-steps": CAC | {"sampling_steps": 5, "max_q_backup": True, "steps": 40},  # several stages
    "dql": DQL,
    "dql-bc": DQL | {"bc": True},
    "dql-max-q-backup": DQL | {"max_q_backup": True},
    "fql": FQL,
    "fql-four-layers": FQL | {"layers": 4, "alpha": 0.3},
    "fql-bc": FQL | {"bc": True},
    "iql": IQL,
    "iql-antmaze": IQL | {"expectile": 0.9, "eta": 10.0, "weight_cap": 2.0, "grad_norm": 0.0},
    "iql-cosine": IQL | {"lr_schedule": "cosine", "steps": 14},
    "iql-bc": IQL | {"lr_schedule": "cosine", "steps": 14, "bc": True},
    "td3bc": TD3BC,
    "td3bc-plain": TD3BC | {"alpha": 0.3, "grad_norm": 0.0},
    "td3bc-bc": TD3BC | {"bc": True},
}
ALGORITHMS = tuple(name for name in CASES if "-" not in name)


def small_config() -> TrainConfig:
    """Two members, width 32, batch 16: every path of the default algorithm, the paper's form."""
    return TrainConfig(
        env="x", steps=1_000, batch_size=16, hidden=32, seeds=2, lr=1e-3, eta=3.0, grad_norm=1.0, sampling_steps=3,
        weighting="paper", sigma_max=80.0, s1=1280, ema_every=5, ema_start=4, device="cpu", backend="eager",
    )  # fmt: skip


def case(name: str, **changes: Any) -> TrainConfig:
    """Return the small configuration of a case, with changes."""
    return validate(replace(small_config(), **(CASES[name] | changes)))


def fresh(cfg: TrainConfig, device: str = "cpu") -> TrainState:
    """Return the state before the first step."""
    return algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, device)


def trained(cfg: TrainConfig, steps: int, data: SimpleNamespace | None = None) -> TrainState:
    """Return the state after steps on the CPU."""
    state = fresh(cfg)
    stepper(cfg, state, buffer_of(cfg, data))(steps)
    return state


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
