"""Time from a NumPy observation to a NumPy action through `policy.act`, copies to the device and back included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.gpu.timing import wall_us
from bench.training import ACTION_DIM, OBS_DIM, config, policy
from gtp_fast.algorithms import gtp
from gtp_fast.policy.policy import Policy


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return microseconds an action; the networks are as they were drawn, which costs what trained ones cost.

    On the CPU one thread acts, as a robot's loop would.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own, obs = acting(row, dry)
        return wall_us(lambda: own.act(obs), dry) | {"way": own.runtime}
    finally:
        torch.set_num_threads(threads)


def acting(row: dict[str, Any], dry: bool) -> tuple[Policy, np.ndarray]:
    """Return a policy that has acted once, and an observation.

    Raises: ValueError when it acts out of bounds, or otherwise than its formulas in torch: then it is not timed.
    """
    several = {"candidates": row["candidates"], "select": "argmax" if row["candidates"] > 1 else "none"}
    cfg = config(hidden=32 if dry else 256, sampling_steps=row["sampling_steps"], **several)
    own = policy(cfg, gtp.init_state(cfg, OBS_DIM, ACTION_DIM, row["where"]), OBS_DIM, ACTION_DIM)
    obs = np.random.default_rng(0).normal(size=OBS_DIM).astype(np.float32)
    action, expected = own.act(obs), own.plain().act(obs)
    if action.shape != (ACTION_DIM,) or not np.abs(action).max() <= 1:  # NaN is out of bounds too
        raise ValueError(f"the policy acted {action}")
    # Candidates whose values nearly tie may be chosen otherwise; TF32 alone is far below a tenth.
    if row["candidates"] == 1 and not np.abs(action - expected).max() < 0.05:
        raise ValueError(f"the policy acted {action}, by its formulas {expected}: not timed")
    return own, obs
