"""The replay buffer: every transition of the data set as a packed row on the device, read by one gather.

In: transitions. Out: batches of the rows at given indices. A row is [o, a, r, 1 - terminal, o', padding to 16 bytes],
so that a sampled transition is one contiguous read. With --normalise-obs, o and o' are stored as (o - mean) / std.

Legend: N transitions, S members, B batch rows, D observation, A action, W floats per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gtp_fast.config import TrainConfig
from gtp_fast.data.transitions import Transitions, row_width

EPS = 1e-3  # added to the standard deviation, as in TD3+BC: a constant column stays finite
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean, and std + EPS, of each column
BLOCK = 65_536  # rows copied to float64 at a time


@dataclass(frozen=True)
class Batch:
    """Gathered rows: obs (S, B, D), action (S, B, A), reward and bootstrap (S, B), next_obs (S, B, D).

    Image observations are uint8 (S, B, H, W, C) instead.
    """

    obs_SBD: Tensor
    action_SBA: Tensor
    reward_SB: Tensor
    bootstrap_SB: Tensor
    next_obs_SBD: Tensor
    ema_obs_SBD: Tensor | None = None  # obs encoded by the EMA actor; GTP's step uses it twice


@dataclass(frozen=True)
class ReplayBuffer:
    """All transitions of a data set on one device; `rows` is float32 (N, W)."""

    rows: Tensor
    obs_dim: int
    action_dim: int
    obs_scale: Scale | None = None  # that the rows were scaled by, with --normalise-obs

    @classmethod
    def from_transitions(cls, data: Transitions, cfg: TrainConfig, device: torch.device | str) -> ReplayBuffer:
        """Pack the transitions into rows and move them to the device once."""
        rows, scale = packed(data, cfg)
        return cls(torch.from_numpy(rows).to(device), data.obs_ND.shape[1], data.action_NA.shape[1], scale)

    @property
    def size(self) -> int:
        """Number of transitions N."""
        return self.rows.shape[0]

    @property
    def obs_shape(self) -> int:
        """Size of an observation."""
        return self.obs_dim

    def gather(self, index_SB: Tensor, step: Tensor | None = None) -> Batch:
        """Read the transitions at int64 indices in [0, N); only FrameBuffer uses `step`."""
        obs_dim, action_dim = self.obs_dim, self.action_dim
        row_SBW = self.rows.index_select(0, index_SB.flatten()).view(*index_SB.shape, -1)
        obs, action, reward, bootstrap, next_obs, _ = row_SBW.split(
            [obs_dim, action_dim, 1, 1, obs_dim, row_SBW.shape[-1] - 2 * obs_dim - action_dim - 2], dim=-1
        )
        return Batch(obs, action, reward[..., 0], bootstrap[..., 0], next_obs)


def packed(data: Transitions, cfg: TrainConfig) -> tuple[np.ndarray, Scale | None]:
    """Return the transitions as rows, float32 (N, W), and the scale of the observations.

    Rewards and observations are stored as training uses them: (r + reward_shift) * reward_scale, and `scaled`
    observations with --normalise-obs.
    """
    obs_dim, action_dim = data.obs_ND.shape[1], data.action_NA.shape[1]
    rest, width = obs_dim + action_dim, row_width(obs_dim, action_dim)
    scale = measured(data.obs_ND) if cfg.normalise_obs else None
    # Scaled successors need new rows: the rows that could be reused hold the raw ones.
    rows = np.zeros((len(data.obs_ND), width), np.float32) if scale else _rows_for(data.next_obs_ND, rest + 2, width)
    rows[:, :obs_dim] = scaled(data.obs_ND, *scale) if scale else data.obs_ND
    rows[:, obs_dim:rest] = data.action_NA
    np.add(data.reward_N, cfg.reward_shift, out=rows[:, rest])  # in place: a temporary would be the peak of memory
    rows[:, rest] *= cfg.reward_scale
    rows[:, rest + 1] = ~data.terminal_N
    rows[:, rest + 2 : rest + 2 + obs_dim] = scaled(data.next_obs_ND, *scale) if scale else data.next_obs_ND
    return rows, scale


def _rows_for(next_obs_ND: np.ndarray, column: int, width: int) -> np.ndarray:
    """Return float32 (N, W) to be filled: the rows in which `build_transitions` wrote the successors, or new rows.

    Those rows are reused once. A second buffer of the same transitions gets new rows.
    """
    size, base = len(next_obs_ND), next_obs_ND.base
    if base is not None and base.ndim == 2 and base.shape[1] == width and base.dtype == np.float32:
        inside = base[:size, column:].ctypes.data == next_obs_ND.ctypes.data
        if inside and base.flags.writeable:
            rows, base.flags.writeable = base[:size], False  # marks them as taken; this view stays writable
            return rows
    return np.zeros((size, width), dtype=np.float32)


# The policy keeps mean and std and scales its own input by the same two float32 operations, so it gets the same bits.
# They are not folded into the first layer's weights: for a nearly constant column that layer would have to cancel a
# large mean, and operands of 8 or 10 bits (bf16, tf32) cannot.


def measured(obs_ND: np.ndarray) -> Scale:
    """Return mean and standard deviation + EPS of each column, summed in float64 and rounded to float32."""
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
    """Do the same as `scaled` on a tensor, in operations that can be exported."""
    return (obs - torch.tensor(mean, device=obs.device)) / torch.tensor(std, device=obs.device)
