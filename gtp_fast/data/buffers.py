"""Which buffer a data set gets: packed rows on the device, packed rows streamed from the host, or frames.

In: transitions and the run's settings. Out: the buffer, the shape of its observations, its bytes on the device, and an
error for settings that do not suit the observations.
"""

from __future__ import annotations

from torch import Tensor

from gtp_fast.config import TrainConfig
from gtp_fast.data import streaming
from gtp_fast.data.frames import FrameBuffer
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.data.spec import ObsShape
from gtp_fast.data.transitions import Transitions
from gtp_fast.errors import UsageError

Buffer = ReplayBuffer | FrameBuffer


def buffer_of(data: Transitions, cfg: TrainConfig, step: Tensor) -> Buffer:
    """Build the buffer that suits the observations, where `cfg.buffer` says.

    Args: step int64 (), the training state's own counter on the device.
    """
    if data.frames_FHWC is None:
        return streaming.make_buffer(data, cfg, step)
    return FrameBuffer.from_transitions(data, cfg, cfg.device)


def obs_shape(data: Transitions, cfg: TrainConfig) -> ObsShape:
    """Return the size of a vector observation, or height, width and channels of stacked frames."""
    if data.frames_FHWC is None:
        return data.obs_ND.shape[1]
    _, height, width, channels = data.frames_FHWC.shape
    return height, width, channels * cfg.frame_stack


def bytes_on_device(data: Transitions, cfg: TrainConfig) -> int:
    """Return the bytes that `buffer_of` will allocate on the device."""
    return streaming.device_bytes(cfg, data) if data.frames_FHWC is None else FrameBuffer.bytes_of(data)


def check_settings(data: Transitions, cfg: TrainConfig) -> None:
    """Refuse settings for frames on vector observations, and settings for vectors on images.

    Raises: UsageError naming the flag.
    """
    if data.frames_FHWC is not None:
        for flag, given in (("--normalise-obs", cfg.normalise_obs), ("--buffer host", cfg.buffer == "host")):
            if given:
                raise UsageError(
                    f"{flag} is for observations that are vectors, and those of {data.name} are images; leave it out"
                )
        return
    for name in ("frame_stack", "augment"):
        value, default = getattr(cfg, name), getattr(TrainConfig, name)
        if value != default:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} is for frames, and the observations of {data.name} are vectors of "
                f"{data.obs_ND.shape[1]} numbers; leave it out"
            )
