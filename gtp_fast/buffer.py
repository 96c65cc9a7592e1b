"""The replay buffer: every transition of the data set in packed rows on the device, sampled by one gather.

Legend: N transitions, S members, B batch rows, D observation, A action. A row is [o, a, r, 1 - terminal, o', padding],
so that a sample touches one run of memory; rows are padded to 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gtp_fast.config import TrainConfig
    from gtp_fast.dataset import Transitions

ROW_ALIGN = 4  # floats: 16-byte rows


@dataclass(frozen=True)
class Batch:
    """Gathered rows: obs (S, B, D), action (S, B, A), reward and bootstrap (S, B), next_obs (S, B, D).

    Observations that are frames are uint8 (S, B, H, W, C) instead.
    """

    obs_SBD: Tensor
    action_SBA: Tensor
    reward_SB: Tensor
    bootstrap_SB: Tensor
    next_obs_SBD: Tensor
    slow_obs_SBD: Tensor | None = None  # obs as a slow network sees them, where a step asks for it twice


@dataclass(frozen=True)
class ReplayBuffer:
    """All transitions of a data set on one device; `rows` is float32 (N, W)."""

    rows: Tensor
    obs_dim: int
    action_dim: int

    @classmethod
    def from_transitions(cls, data: Transitions, cfg: TrainConfig, device: torch.device | str) -> ReplayBuffer:
        """Pack the transitions into rows and move them to the device once.

        The reward is stored as it is trained, (r + reward_shift) * reward_scale.
        """
        size, obs_dim = data.obs_ND.shape
        action_dim = data.action_NA.shape[1]
        rows = np.zeros((size, row_width(obs_dim, action_dim)), dtype=np.float32)
        rows[:, :obs_dim] = data.obs_ND
        rows[:, obs_dim : obs_dim + action_dim] = data.action_NA
        rest = obs_dim + action_dim
        rows[:, rest] = (data.reward_N + cfg.reward_shift) * cfg.reward_scale
        rows[:, rest + 1] = ~data.terminal_N
        rows[:, rest + 2 : rest + 2 + obs_dim] = data.next_obs_ND
        return cls(torch.from_numpy(rows).to(device), obs_dim, action_dim)

    @property
    def size(self) -> int:
        """Number of transitions N."""
        return self.rows.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.rows.numel() * self.rows.element_size()

    @property
    def obs_shape(self) -> int:
        """How many numbers an observation has."""
        return self.obs_dim

    @classmethod
    def bytes_of(cls, data: Transitions) -> int:
        """Return the bytes that `from_transitions` will take on the device."""
        return 4 * len(data.obs_ND) * row_width(data.obs_ND.shape[1], data.action_NA.shape[1])

    def gather(self, index_SB: Tensor, step: Tensor | None = None) -> Batch:
        """Read the transitions at int64 indices in [0, N); `step` is for frames, which a step may shift."""
        obs_dim, action_dim = self.obs_dim, self.action_dim
        row_SBW = self.rows.index_select(0, index_SB.flatten()).view(*index_SB.shape, -1)
        obs, action, reward, bootstrap, next_obs, _ = row_SBW.split(
            [obs_dim, action_dim, 1, 1, obs_dim, row_SBW.shape[-1] - 2 * obs_dim - action_dim - 2], dim=-1
        )
        return Batch(obs, action, reward[..., 0], bootstrap[..., 0], next_obs)


def row_width(obs_dim: int, action_dim: int) -> int:
    """Return the floats in a packed row."""
    return -(-(2 * obs_dim + action_dim + 2) // ROW_ALIGN) * ROW_ALIGN
