"""Time from a NumPy observation to a NumPy action through `policy.act`, copies to the device and back included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.gpu.timing import wall_us
from bench.training import ACTION_DIM, OBS_DIM, config, policy
from gtp_fast.algorithms import gtp


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return microseconds an action; the networks are as they were drawn, which costs what trained ones cost."""
    device = "cuda" if torch.cuda.is_available() and not dry else "cpu"
    several = {"candidates": row["candidates"], "select": "softmax" if row["candidates"] > 1 else "none"}
    cfg = config(hidden=32 if dry else 256, sampling_steps=row["sampling_steps"], **several)
    acting = policy(cfg, gtp.init_state(cfg, OBS_DIM, ACTION_DIM, device), OBS_DIM, ACTION_DIM)
    obs = np.random.default_rng(0).normal(size=OBS_DIM).astype(np.float32)
    action = acting.act(obs)
    if action.shape != (ACTION_DIM,) or not np.isfinite(action).all() or np.abs(action).max() > 1:
        raise ValueError(f"the policy acted {action}")
    return wall_us(lambda: acting.act(obs), dry)
