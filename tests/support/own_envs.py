"""Environments as users register them: with arguments, with images of another form; own_envs:NAME finds them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class Armed(gymnasium.Env):
    """Three numbers in, one out, four steps an episode. It cannot be made without the arm's description."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, arm: Any, render_mode: str | None = None):
        if os.environ.get("SEEN_ARMS"):  # a file, to which every process adds a line
            with Path(os.environ["SEEN_ARMS"]).open("a") as file:
                file.write(json.dumps([os.getpid(), arm]) + "\n")
        self.arm, self.render_mode = arm, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.taken += 1
        return np.full(3, self.taken, np.float32), 1.0, False, self.taken == 4, {}

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


class Camera(gymnasium.Env):
    """Images of the shape and type that its arguments say."""

    def __init__(self, shape: tuple[int, ...] = (4, 16, 16), high: float = 255, dtype: str = "uint8"):
        self.observation_space = spaces.Box(0, high, tuple(shape), np.dtype(dtype).type)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, True, {}


class Graded(gymnasium.Env):
    """Of HalfCheetah's sizes, six steps an episode; its reward has many peaks along the action's first part."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float32)
        self.action_space = spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return self.np_random.normal(size=17).astype(np.float32), {}

    def step(self, action):
        self.taken += 1
        return (
            self.np_random.normal(size=17).astype(np.float32),
            float(np.sin(40 * action[0])),
            False,
            self.taken == 6,
            {},
        )


gymnasium.register("Graded-v0", Graded, disable_env_checker=True)
gymnasium.register("Armed-v0", Armed, disable_env_checker=True)
gymnasium.register("Unversioned", Armed, kwargs={"arm": 1}, disable_env_checker=True)
gymnasium.register("yard/Armed-v0", Armed, kwargs={"arm": 1}, disable_env_checker=True)
gymnasium.register("Camera-v0", Camera, disable_env_checker=True)
