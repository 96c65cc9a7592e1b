"""PointMaze of gymnasium-robotics as an episode with an end and a vector to observe.

What it observes is what files of one's own hold: the agent's observation, then its goal (for the point: x, y, vx, vy,
goal x, goal y), where gymnasium-robotics gives a dictionary and, as it stands, an episode that goes on at its goal.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class PointMazeEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point that must reach a goal it is told: reward 1 within 0.45 of it, where the episode ends.

    Start and goal are drawn at every reset. Observation: float64 (6,). Action: (2,) in [-1, 1], forces.
    Raises: ImportError without gymnasium-robotics.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, env_id: str = "PointMaze_UMaze-v3", render_mode: str | None = None) -> None:
        # The id names the module: gymnasium imports it, and it registers its environments.
        self._env = gymnasium.make(f"gymnasium_robotics:{env_id}", continuing_task=False, render_mode=render_mode)
        parts, action = self._env.observation_space, self._env.action_space
        assert isinstance(parts, Dict) and isinstance(action, Box)
        size = sum(int(np.prod(parts[key].shape or ())) for key in ("observation", "desired_goal"))
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (size,), np.float64), action
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a start and a goal."""
        super().reset(seed=seed)
        obs, info = self._env.reset(seed=seed, options=options)
        return _vector(obs), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push the point; info says whether the goal was reached."""
        obs, reward, terminated, truncated, info = self._env.step(action)
        return _vector(obs), float(reward), terminated, truncated, info

    def render(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw the maze, uint8 (height, width, 3)."""
        return self._env.render()

    def close(self) -> None:
        """Free the simulation."""
        self._env.close()


def _vector(obs: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([obs["observation"], obs["desired_goal"]])


gymnasium.register("gtp_fast/PointMaze-v0", "gtp_fast.evaluation.pointmaze:PointMazeEnv")
