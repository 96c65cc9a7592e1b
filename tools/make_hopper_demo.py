"""Make gtp_fast/data/hopper-demo-v0.hdf5 from two larger files of real Hopper-v5 transitions in D4RL's layout.

Whole episodes only: the most recent ones of a replay buffer (weak to fair) and some of a fair policy, until the row
budget is full. Usage: python tools/make_hopper_demo.py REPLAY.hdf5 MEDIUM.hdf5 OUT.hdf5
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np

REPLAY_ROWS, MEDIUM_ROWS = 60_000, 40_000
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def _episodes(path: Path, rows: int, newest: bool) -> dict[str, np.ndarray]:
    """Return whole episodes from the start or the end of a file, at most `rows` rows."""
    with h5py.File(path) as file:
        lengths = np.asarray(file["infos/episode_lengths"])
        last = np.asarray(file["infos/final_observations"])
        ends = np.cumsum(lengths)
        starts = ends - lengths
        chosen = (
            slice(int(np.searchsorted(starts, ends[-1] - rows)), None)
            if newest
            else slice(0, int(np.searchsorted(ends, rows)))
        )
        span = slice(int(starts[chosen][0]), int(ends[chosen][-1]))
        parts = {key: np.asarray(file[key][span]) for key in KEYS}
    return parts | {"infos/final_observations": last[chosen], "infos/episode_lengths": lengths[chosen]}


def main(replay: str, medium: str, out: str) -> None:
    """Write the file, and where its rows came from into its attributes."""
    pieces = [_episodes(Path(replay), REPLAY_ROWS, newest=True), _episodes(Path(medium), MEDIUM_ROWS, newest=False)]
    with h5py.File(out, "w") as file:
        for key in pieces[0]:
            values = np.concatenate([piece[key] for piece in pieces])
            file.create_dataset(key, data=values, compression="gzip", compression_opts=9, shuffle=True, chunks=True)
        file.attrs["environment"] = "Hopper-v5"
        file.attrs["made_by"] = "SAC: newest rows of a replay buffer at 280k steps, then its stochastic policy"
        file.attrs["source"] = "generated for gtp-fast; not D4RL data"
        file.attrs["rows"] = [len(piece["rewards"]) for piece in pieces]


if __name__ == "__main__":
    main(*sys.argv[1:])
