"""Does a lower precision learn the same? Losses and returns on Hopper, and four modes that a policy must keep.

Four members (seeds) a row, so that a difference between precisions stands beside the spread of seeds. The returns need
gymnasium and mujoco; losses and modes do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.gpu.settings import DRY
from bench.gpu.supervise import REASON, first_line
from bench.training import policy
from gtp_fast import catalog, config_files, dataset, device
from gtp_fast.algorithms import gtp
from gtp_fast.buffer import ReplayBuffer
from gtp_fast.config import TrainConfig
from gtp_fast.graph import stepper
from gtp_fast.state import TrainState

HOPPER, MODES = "hopper-demo-v0", "four modes"
SEEDS, EPISODES = 4, 10
LAST = 1_000  # steps at the end whose losses are averaged
MODE_STEPS = 5_000
CENTRES = 0.5 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=np.float32)
MODE_STD = 0.1  # of the data's actions around a centre; 3 of them hold 98.9 % of a mode of two dimensions


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Train row["what"] with row["backend"] and row["precision"]; return losses a member and what the policies do."""
    flags = {"backend": row["backend"], "precision": row["precision"], "seeds": 2 if dry else SEEDS}
    return (_hopper if row["what"] == HOPPER else _modes)(flags, dry)


def _hopper(flags: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Train the demo's own settings on the embedded data; roll out where an environment can be built."""
    spec = catalog.resolve(HOPPER)
    cfg = _resolved(config_files.merge({"env": HOPPER, **flags}), dry)
    data = dataset.load(spec)
    state, figures = _train(cfg, data, ("actor_loss", "critic_loss", "q"))
    try:
        from gtp_fast.evaluate import evaluate_policy
    except ImportError as error:
        return figures | {"returns": f"{REASON}: {first_line(error)}"}
    acting = policy(cfg, state, data.obs_ND.shape[1], data.action_NA.shape[1])
    try:
        result = evaluate_policy(acting, spec, 1 if dry else EPISODES)
    except Exception as error:  # the losses stand, whatever a simulator says
        return figures | {"returns": f"{REASON}: {first_line(error)}"}
    return figures | {"returns": result.returns_SE.mean(axis=1).tolist()}


def _modes(flags: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Clone actions that come from four modes, equally often, whatever the observation; return each mode's share."""
    task = {"bc": True, "steps": MODE_STEPS, "lr": 2e-3, "grad_norm": 1.0}
    cfg = _resolved(config_files.merge({"env": "multigoal-v0", "hidden": 256, **task, **flags}), dry)
    state, figures = _train(cfg, four_modes(), ("actor_loss",))
    obs = np.zeros((cfg.seeds, 100 if dry else 4_000, 2), dtype=np.float32)
    actions_SBA = policy(cfg, state, 2, 2).act_members(obs)
    shares = [mode_shares(actions) for actions in actions_SBA]
    return figures | {
        "smallest_share": [min(share) for share in shares],
        "largest_share": [max(share) for share in shares],
        "off_modes": [1.0 - sum(share) for share in shares],
    }


def four_modes(rows: int = 20_000) -> SimpleNamespace:
    """Return transitions whose actions lie around four centres; the observation says nothing of which."""
    rng = np.random.default_rng(0)
    obs = rng.normal(0.0, 0.1, (rows, 2)).astype(np.float32)
    action = (CENTRES[np.arange(rows) % 4] + rng.normal(0.0, MODE_STD, (rows, 2))).clip(-1, 1).astype(np.float32)
    nothing = np.zeros(rows, dtype=np.float32)
    return SimpleNamespace(
        obs_ND=obs, action_NA=action, reward_N=nothing, next_obs_ND=obs, terminal_N=np.zeros(rows, dtype=bool)
    )


def mode_shares(actions_NA: np.ndarray) -> list[float]:
    """Return the share of actions within three standard deviations of each centre."""
    distance = np.linalg.norm(actions_NA[:, None] - CENTRES[None], axis=-1)
    return (distance < 3 * MODE_STD).mean(axis=0).tolist()


def _resolved(cfg: TrainConfig, dry: bool) -> TrainConfig:
    if dry:
        return replace(cfg, device="cpu", steps=2, **DRY)
    return device.resolve(replace(cfg, device="cuda"))[0]


def _train(cfg: TrainConfig, data: Any, metrics: tuple[str, ...]) -> tuple[TrainState, dict[str, Any]]:
    """Train to the end; return the state and the mean of each metric over the last steps, one value a member."""
    device.prepare(cfg)
    buffer = ReplayBuffer.from_transitions(data, cfg, cfg.device)
    state = gtp.init_state(cfg, buffer.obs_dim, buffer.action_dim, cfg.device)
    run: Callable[[int], None] = stepper(cfg, state, buffer)
    last, started = min(LAST, cfg.steps // 2), time.monotonic()
    run(cfg.steps - last)
    state.metric_sums_SQ.zero_()
    run(last)
    means = (state.metric_sums_SQ / last).tolist()  # waits for the device
    seconds = time.monotonic() - started
    if (state.first_bad_SQ >= 0).any():
        raise ValueError("the state holds NaN or Inf after training")
    names = gtp.metric_names(cfg)
    return state, {"steps": cfg.steps, "train_s": seconds} | {
        m: [row[names.index(m)] for row in means] for m in metrics
    }
