"""The buffer of observations that are pictures: each frame once on the device, uint8; transitions number them.

A transition holds the numbers of its frame, of its successor and of its episode's first frame. The observation of
frame i is the stack of frames i - n + 1 .. i along the channels, the episode's first one repeated where it begins: no
stack and no next observation is kept. Random shifts are part of the same read.

Legend: F frames of H x W pixels and C channels, N transitions, S members, B batch rows, A action, n stacked frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from gtp_kernels.primitives import integer_below
from torch import Tensor

from gtp_fast import rng
from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.data import streaming
from gtp_fast.data.replay import Batch, ReplayBuffer
from gtp_fast.data.spec import ObsShape
from gtp_fast.data.transitions import ROW_ALIGN
from gtp_fast.errors import UsageError

if TYPE_CHECKING:
    from gtp_fast.data.transitions import Transitions

PAD = 3  # pixels a shift may reach, of 64 [FQL]


@dataclass(frozen=True)
class FrameBuffer:
    """Frames uint8 (F, H, W, C), `rows` float32 (N, W) of [a, r, 1 - terminal, padding], `place` int64 (N, 3).

    `place` is [frame, successor, first frame of the episode]. `augment`: probability that a step shifts its batch.
    """

    frames: Tensor
    rows: Tensor
    place: Tensor
    action_dim: int
    stack: int
    augment: float
    keys_S2: Tensor
    plan: rng.Plan
    obs_scale = None  # pictures are not normalised by their data

    @classmethod
    def from_transitions(cls, data: Transitions, cfg: TrainConfig, device: torch.device | str) -> FrameBuffer:
        """Move the frames and the rows to the device once; the reward is stored as it is trained."""
        assert data.frames_FHWC is not None
        size, action_dim = data.action_NA.shape
        rows = np.zeros((size, small_row_width(action_dim)), dtype=np.float32)
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

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an observation."""
        _, height, width, channels = self.frames.shape
        return height, width, channels * self.stack

    @property
    def size(self) -> int:
        """Number of transitions N."""
        return self.rows.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(part.numel() * part.element_size() for part in (self.frames, self.rows, self.place))

    def gather(self, index_SB: Tensor, step: Tensor) -> Batch:
        """Read the transitions at int64 indices in [0, N); observations are uint8 (S, B, H, W, n C).

        Args: step int64 () on the device, what the shifts are drawn for.
        """
        flat = index_SB.flatten()
        row_SBW = self.rows.index_select(0, flat).view(*index_SB.shape, -1)
        frame, successor, first = self.place.index_select(0, flat).view(*index_SB.shape, 3, 1).unbind(2)
        back = torch.arange(1 - self.stack, 1, device=frame.device)
        # n frames of the observation and the successor: the next observation is the last n of them.
        number_SBN = torch.cat([torch.maximum(frame + back, first), successor], dim=-1)
        seen = self._shifted(number_SBN, step) if self.augment > 0 else self._whole(number_SBN)
        obs, next_obs = (seen[..., i : i + self.stack, :].flatten(-2) for i in (0, 1))
        rest = self.action_dim
        return Batch(obs, row_SBW[..., :rest], row_SBW[..., rest], row_SBW[..., rest + 1], next_obs)

    def _whole(self, number_SBN: Tensor) -> Tensor:
        """Return the frames of these numbers, (S, B, H, W, n + 1, C)."""
        read = self.frames.index_select(0, number_SBN.flatten()).view(*number_SBN.shape, *self.frames.shape[1:])
        return read.permute(0, 1, 3, 4, 2, 5)

    def _shifted(self, number_SBN: Tensor, step: Tensor) -> Tensor:
        """Return the frames moved by whole pixels, edges repeated; one shift for all frames of a row."""
        _, height, width, channels = self.frames.shape
        row_SBH, column_SBW = (
            (torch.arange(size, device=shift.device) + shift[..., None]).clamp(0, size - 1)
            for size, shift in zip((height, width), self.shifts(step), strict=True)
        )
        # Rows of pixels by number, then their columns: the first read moves whole lines of memory.
        line_SBNH = number_SBN[..., None] * height + row_SBH[:, :, None]
        lines = self.frames.view(-1, width * channels).index_select(0, line_SBNH.flatten())
        lines = lines.view(*line_SBNH.shape, width, channels)
        moved = lines.gather(4, column_SBW[:, :, None, None, :, None].expand(lines.shape))
        return moved.permute(0, 1, 3, 4, 2, 5)

    def shifts(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Draw how far down and right each row of the batch reads, int64 (S, B) in [-3, 3]; 0 where none is due.

        One coin a member and step decides for the whole batch [FQL].
        """
        bits = rng.words(self.plan, self.keys_S2, step)[rng.SHIFT]
        due_S1 = (bits[:, :1, 2] < round(self.augment * 2**32)).to(torch.int64)
        down, right = ((integer_below(bits[..., lane], 2 * PAD + 1) - PAD) * due_S1 for lane in (0, 1))
        return down, right


Buffer = ReplayBuffer | FrameBuffer


def buffer_of(data: Transitions, cfg: TrainConfig, step: Tensor) -> Buffer:
    """Put a data set where `cfg.buffer` says, in the form of its observations.

    Args: step int64 (), the state's own counter on the device.
    """
    if data.frames_FHWC is None:
        return streaming.make_buffer(data, cfg, step)
    return FrameBuffer.from_transitions(data, cfg, cfg.device)


def obs_shape(data: Transitions, cfg: TrainConfig) -> ObsShape:
    """Return how many numbers an observation has, or height, width and channels of stacked frames."""
    if data.frames_FHWC is None:
        return data.obs_ND.shape[1]
    _, height, width, channels = data.frames_FHWC.shape
    return height, width, channels * cfg.frame_stack


def bytes_on_device(data: Transitions, cfg: TrainConfig) -> int:
    """Return what `buffer_of` will take: of frames F H W C, and a small row a transition."""
    if data.frames_FHWC is None:
        return streaming.device_bytes(cfg, data)
    size, action_dim = data.action_NA.shape
    return data.frames_FHWC.nbytes + size * (4 * small_row_width(action_dim) + 3 * 8)


def small_row_width(action_dim: int) -> int:
    """Return the floats in a row without observations."""
    return -(-(action_dim + 2) // ROW_ALIGN) * ROW_ALIGN


def check_settings(data: Transitions, cfg: TrainConfig) -> None:
    """Refuse settings of frames where the observations are vectors, and of vectors where they are frames.

    Raises: UsageError naming the flag.
    """
    if data.frames_FHWC is not None:
        for flag, given in (("--normalise-obs", cfg.normalise_obs), ("--buffer host", cfg.buffer == "host")):
            if given:
                raise UsageError(
                    f"{flag} is for observations that are vectors, and those of {data.name} are pictures; leave it out"
                )
        return
    for name in ("frame_stack", "augment"):
        value, default = getattr(cfg, name), getattr(TrainConfig, name)
        if value != default:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} is for frames, and the observations of {data.name} are "
                f"{data.obs_ND.shape[1]} numbers; leave it out"
            )
