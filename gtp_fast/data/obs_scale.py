"""Observation normalisation, (o - mean) / std by column: measured once on the data, then part of the policy.

The replay buffer holds what this makes of the data, and a policy makes the same of what it is given, in float32 and by
the same two operations, to the bit. It is not folded into the first layer's weights: there the mean of a column that
hardly varies would have to cancel, and operands of 8 or 10 bits cannot do that.

Legend: N transitions, D observation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EPS = 1e-3  # added to the standard deviation, as TD3+BC's authors do: a constant column is finite
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean, and std + EPS, of each column
BLOCK = 65_536  # rows whose float64 copies are held at a time


def measured(obs_ND: np.ndarray) -> Scale:
    """Return mean and standard deviation + EPS of each column; summed in float64, rounded to float32."""
    blocks = range(0, len(obs_ND), BLOCK)
    zeros_D = np.zeros(obs_ND.shape[1])
    mean_D = sum((obs_ND[i : i + BLOCK].sum(axis=0, dtype=np.float64) for i in blocks), zeros_D) / len(obs_ND)
    squares_D = sum((np.square(obs_ND[i : i + BLOCK] - mean_D).sum(axis=0) for i in blocks), zeros_D)
    std_D = np.sqrt(squares_D / len(obs_ND)) + EPS
    return _float32(mean_D), _float32(std_D)


def _float32(row_D: np.ndarray) -> tuple[float, ...]:
    return tuple(row_D.astype(np.float32).tolist())


def scaled(obs: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return (obs - mean) / std in float32; obs float32 (..., D)."""
    return (obs - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def scaled_tensor(obs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Do what `scaled` does, with a tensor; the graph of it can be exported."""
    return (obs - torch.tensor(mean, device=obs.device)) / torch.tensor(std, device=obs.device)
