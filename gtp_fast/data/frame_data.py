"""Observations that are pictures, on the host: what is taken for one, and how transitions refer to frames by number.

Legend: N rows, E episodes, F frames of H x W pixels and C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gtp_fast.data.transitions import Arrays

SMALLEST = 8  # pixels a side: the encoder halves them three times


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
