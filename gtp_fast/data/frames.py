"""The buffer for image observations: each frame is on the device once, as uint8, and transitions refer to it by index.

In: transitions whose observations are frame indices. Out: batches with stacked frames. The observation of frame i is
frames i - n + 1 .. i along the channels; at the start of an episode its first frame is repeated. Neither stacks nor
next observations are stored. The same read applies random shifts.

Legend: F frames of H x W pixels and C channels, N transitions, S members, B batch rows, A action, n stacked frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gtp_kernels.primitives import integer_below
from torch import Tensor

from gtp_fast import rng
from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.data.replay import Batch
from gtp_fast.data.transitions import Transitions, row_width

PAD = 3  # largest shift in pixels, for images of 64 [FQL]


@dataclass(frozen=True)
class FrameBuffer:
    """Frames, and one small row per transition.

    frames: uint8 (F, H, W, C). rows: float32 (N, W) of [a, r, 1 - terminal, padding]. place: int64 (N, 3), the indices
    of [frame, successor, first frame of the episode]. augment: the probability that a step shifts its batch.
    """

    frames: Tensor
    rows: Tensor
    place: Tensor
    action_dim: int
    stack: int
    augment: float
    keys_S2: Tensor
    plan: rng.Plan
    obs_scale = None  # --normalise-obs is for vectors

    @classmethod
    def from_transitions(cls, data: Transitions, cfg: TrainConfig, device: torch.device | str) -> FrameBuffer:
        """Move frames and rows to the device once. Rewards are stored shifted and scaled, as training uses them."""
        assert data.frames_FHWC is not None
        size, action_dim = data.action_NA.shape
        rows = np.zeros((size, row_width(0, action_dim)), dtype=np.float32)
        rows[:, :action_dim] = data.action_NA
        rows[:, action_dim] = (data.reward_N + cfg.reward_shift) * cfg.reward_scale
        rows[:, action_dim + 1] = ~data.terminal_N
        place = np.stack([data.obs_ND[:, 0], data.next_obs_ND[:, 0], data.obs_ND[:, 1]], axis=1)
        return cls(
            frames=torch.from_numpy(np.ascontiguousarray(data.frames_FHWC)).to(device),
            rows=torch.from_numpy(rows).to(device),
            place=torch.from_numpy(place).to(device),
            action_dim=action_dim,
            stack=cfg.frame_stack,
            augment=cfg.augment,
            keys_S2=rng.seed_keys(member_seeds(cfg), device),
            plan=rng.plan({rng.SHIFT: cfg.batch_size}, device),
        )

    @classmethod
    def bytes_of(cls, data: Transitions) -> int:
        """Return the bytes that `from_transitions` will take on the device: frames, rows and places."""
        assert data.frames_FHWC is not None
        size, action_dim = data.action_NA.shape
        return data.frames_FHWC.nbytes + size * (4 * row_width(0, action_dim) + 3 * 8)

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an observation."""
        _, height, width, channels = self.frames.shape
        return height, width, channels * self.stack

    @property
    def size(self) -> int:
        """Number of transitions N."""
        return self.rows.shape[0]

    def gather(self, index_SB: Tensor, step: Tensor) -> Batch:
        """Read the transitions at int64 indices in [0, N); observations are uint8 (S, B, H, W, n C).

        Args: step int64 () on the device; the shifts are drawn for this step.
        """
        flat = index_SB.flatten()
        row_SBW = self.rows.index_select(0, flat).view(*index_SB.shape, -1)
        frame, successor, first = self.place.index_select(0, flat).view(*index_SB.shape, 3, 1).unbind(2)
        back = torch.arange(1 - self.stack, 1, device=frame.device)
        # The observation's n frames, then the successor's: the next observation is the last n of these n + 1.
        number_SBN = torch.cat([torch.maximum(frame + back, first), successor], dim=-1)
        seen = self._shifted(number_SBN, step) if self.augment > 0 else self._whole(number_SBN)
        obs, next_obs = (seen[..., i : i + self.stack, :].flatten(-2) for i in (0, 1))
        rest = self.action_dim
        return Batch(obs, row_SBW[..., :rest], row_SBW[..., rest], row_SBW[..., rest + 1], next_obs)

    def _whole(self, number_SBN: Tensor) -> Tensor:
        """Return the frames at these indices, (S, B, H, W, n + 1, C)."""
        read = self.frames.index_select(0, number_SBN.flatten()).view(*number_SBN.shape, *self.frames.shape[1:])
        return read.permute(0, 1, 3, 4, 2, 5)

    def _shifted(self, number_SBN: Tensor, step: Tensor) -> Tensor:
        """Return the frames at these indices, shifted by whole pixels with edges repeated; a row has one shift."""
        _, height, width, channels = self.frames.shape
        row_SBH, column_SBW = (
            (torch.arange(size, device=shift.device) + shift[..., None]).clamp(0, size - 1)
            for size, shift in zip((height, width), self.shifts(step), strict=True)
        )
        # First the lines of pixels, then their columns: the first read moves contiguous memory.
        line_SBNH = number_SBN[..., None] * height + row_SBH[:, :, None]
        lines = self.frames.view(-1, width * channels).index_select(0, line_SBNH.flatten())
        lines = lines.view(*line_SBNH.shape, width, channels)
        moved = lines.gather(4, column_SBW[:, :, None, None, :, None].expand(lines.shape))
        return moved.permute(0, 1, 3, 4, 2, 5)

    def shifts(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the shift of each batch row, down and right, int64 (S, B) in [-3, 3].

        One draw per member and step decides whether its whole batch is shifted; if not, its shifts are 0 [FQL].
        """
        bits = rng.random_bits(self.plan, self.keys_S2, step)[rng.SHIFT]
        shift_S1 = (bits[:, :1, 2] < round(self.augment * 2**32)).to(torch.int64)
        down, right = ((integer_below(bits[..., lane], 2 * PAD + 1) - PAD) * shift_S1 for lane in (0, 1))
        return down, right
