"""The four goals of `data.embedded` as a Gymnasium environment: it scores the policies of multigoal-v0.

It has a file of its own because it needs Gymnasium when it is imported, which `environments` does not.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from gtp_fast.data.embedded import BOUND, Plane


class MultiGoalEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point in the plane [-3, 3]^2, moved by its action in [-1, 1]^2; a goal ends the episode.

    Reward 1 at a goal, 0 elsewhere; 25 steps at most. Observation: position, float32 (2,).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = Box(-BOUND, BOUND, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self._plane = Plane()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Place the point near the origin."""
        super().reset(seed=seed)
        return self._plane.reset(self.np_random), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; end at a goal or after 25 steps."""
        return *self._plane.step(action), {}


gymnasium.register("gtp_fast/MultiGoal-v0", "gtp_fast.evaluation.multigoal:MultiGoalEnv")
