"""The embedded four-goal task of the paper's Fig. 7: its dynamics, its data set and a measure of its modes.

In: a seed. Out: `Arrays` of expert episodes, with the same bits for the same seed. A point starts near the origin of a
plane and moves to one of four equally good goals. The goal is not observed, so near the origin the expert's actions
have four modes, and a policy must keep all of them. (The other embedded data set, hopper-demo-v0, is a file.)
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from gtp_fast.data.transitions import Arrays

GOALS = 2.0 * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=np.float32)
BOUND = 3.0  # of the plane, in each direction
GOAL_RADIUS = 0.4
START_STD = 0.1
ACTION_SIZE = 0.7  # length of the expert's action along its direction, so that no mode touches the bounds
ACTION_STD = 0.1
MAX_STEPS = 25
EPISODES = 4_000

MODE_CENTRES = ACTION_SIZE * GOALS / np.linalg.norm(GOALS, axis=1, keepdims=True)  # of the actions at the origin
MODE_RADIUS = 3 * ACTION_STD  # contains 98.9 % of a two-dimensional mode


class Plane:
    """A point in the plane [-3, 3]^2, moved by its action in [-1, 1]^2. (`evaluation` wraps it for Gymnasium.)"""

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Place the point near the origin; return its position, float32 (2,)."""
        self._position, self._steps = rng.normal(0.0, START_STD, 2).astype(np.float32), 0
        return self._position.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Move; return position, reward (1 at a goal, else 0) and whether a goal or the time limit ended it."""
        self._position = np.clip(self._position + np.clip(action, -1, 1), -BOUND, BOUND).astype(np.float32)
        self._steps += 1
        reached = bool((np.linalg.norm(GOALS - self._position, axis=1) < GOAL_RADIUS).any())
        return self._position.copy(), float(reached), reached, self._steps >= MAX_STEPS


@functools.lru_cache(maxsize=1)  # a run reads its data, and its report draws them: a second of CPU time each
def multigoal_arrays(episodes: int = EPISODES, seed: int = 0) -> Arrays:
    """Generate expert episodes with the environment's own steps, each goal equally often; same seed, same bits.

    The arrays are shared by all who ask for them, and read-only.
    """
    rng, plane = np.random.default_rng(seed), Plane()
    columns: dict[str, list[Any]] = {key: [] for key in ("obs", "action", "reward", "terminal", "timeout", "next_obs")}
    for episode in range(episodes):
        obs = plane.reset(np.random.default_rng(seed + episode))
        goal, ended = GOALS[episode % len(GOALS)], False
        while not ended:
            direction = goal - obs
            action = ACTION_SIZE * direction / np.linalg.norm(direction) + rng.normal(0.0, ACTION_STD, 2)
            action = action.clip(-1, 1).astype(np.float32)
            following, reward, terminal, timeout = plane.step(action)
            for key, value in zip(columns, (obs, action, reward, terminal, timeout, following), strict=True):
                columns[key].append(value)
            obs, ended = following, terminal or timeout
    arrays: dict[str, Any] = {key: np.asarray(values) for key, values in columns.items()}
    sha = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    arrays["reward"] = arrays["reward"].astype(np.float32)
    for array in arrays.values():
        array.flags.writeable = False
    return Arrays(where="multigoal-v0", **arrays, last_obs=None, sha256=sha.hexdigest())


def mode_masses(actions: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the share of actions (N, 2) within MODE_RADIUS of each mode, (4,), and the share outside every mode."""
    distance = np.linalg.norm(actions[:, None] - MODE_CENTRES[None], axis=-1)
    inside = distance < MODE_RADIUS
    return inside.mean(axis=0), float(1.0 - inside.any(axis=1).mean())
