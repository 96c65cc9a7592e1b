"""Observations that are pictures, on the host: what is taken for one, and how transitions refer to frames by number.

Legend: N rows, E episodes, F frames of H x W pixels and C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gtp_fast.errors import DataError

if TYPE_CHECKING:
    from gtp_fast.episodes import Arrays

SMALLEST = 8  # pixels a side: the encoder halves them three times


def are_frames(array: np.ndarray) -> bool:
    """Say whether observations are pictures: uint8 with four axes (N, H, W, C)."""
    return array.dtype == np.uint8 and array.ndim == 4


def check_frames(data: Arrays) -> None:
    """Refuse pictures that cannot be kept once, or seen.

    Raises: DataError with what is wrong and how to write it.
    """
    if min(data.obs.shape[1:3]) < SMALLEST or not data.obs.shape[3]:
        raise DataError(
            f"{data.where}: observations are pictures of {data.obs.shape[1:]}, expected (H, W, C) of at least "
            f"{SMALLEST} x {SMALLEST}; write them larger"
        )
    if data.next_obs is not None:
        raise DataError(
            f"{data.where}: next_observations of pictures are a second copy of the file; leave the key out, and write "
            "each episode's last picture as a row of its own with timeouts true, or into infos/final_observations"
        )
    if data.last_obs is not None and data.last_obs.dtype != np.uint8:
        raise DataError(
            f"{data.where}: infos/final_observations hold {data.last_obs.dtype} beside observations of uint8; write "
            "uint8 there, too"
        )


def number_frames(data: Arrays) -> tuple[np.ndarray, Arrays]:
    """Return all frames, and the data with an observation's numbers in its place.

    Returns: frames uint8 (F, H, W, C), the last ones of episodes behind the others; data with obs int64 (N, 2) and
    last_obs (E, 2): [number of the frame, number of its episode's first].
    """
    rows = np.arange(len(data.obs))
    ends = np.flatnonzero(data.terminal | data.timeout)
    starts = np.concatenate([[0], ends + 1])  # one more than episodes where the last row ends one
    first = starts[np.searchsorted(starts, rows, side="right") - 1]
    obs, frames, last = np.stack([rows, first], axis=1), data.obs, None
    if data.last_obs is not None:
        numbers = np.arange(len(data.last_obs))
        last = np.stack([len(rows) + numbers, starts[numbers]], axis=1)
        frames = np.concatenate([data.obs, data.last_obs])
    return frames, replace(data, obs=obs, last_obs=last)
