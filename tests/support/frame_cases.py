"""Small worlds of pictures for the tests: frames that say which they are, and a task that is solved by looking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from data_cases import write

from gtp_fast.config import TrainConfig
from gtp_fast.data.frames import FrameBuffer
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.data.transitions import Arrays, Transitions, build_transitions, validate
from gtp_fast.data.units import Actions

SIDE, ACTION_DIM = 16, 2
SPEC = DataSpec("frames", "file")


def arrays(
    lengths: list[int], shape: tuple[int, int, int] = (8, 9, 2), seed: int = 0, last: str = "row", **changes: Any
) -> Arrays:
    """Episodes of so many transitions; frame 0's first two bytes are its own number, the rest is noise.

    last: where an episode's last observation is, a "row" of its own with timeout true, the "key" last_obs, or
    "nowhere": then the last row is terminal.
    """
    rng = np.random.default_rng(seed)
    extra = 1 if last == "row" else 0
    ends = np.cumsum([length + extra for length in lengths]) - 1
    rows = int(ends[-1]) + 1
    end = np.zeros(rows, dtype=bool)
    end[ends] = True
    return replace(
        Arrays(
            where="frames.hdf5",
            obs=numbered(np.arange(rows), shape, rng),
            action=rng.uniform(-1, 1, (rows, ACTION_DIM)).astype(np.float32),
            reward=rng.normal(size=rows).astype(np.float32),
            terminal=end if last == "nowhere" else np.zeros(rows, dtype=bool),
            timeout=np.zeros(rows, dtype=bool) if last == "nowhere" else end,
            next_obs=None,
            last_obs=numbered(rows + np.arange(len(lengths)), shape, rng) if last == "key" else None,
            sha256="0",
        ),
        **changes,
    )


def numbered(numbers: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw noisy frames that carry their numbers in their first two bytes."""
    frames = rng.integers(0, 256, size=(len(numbers), *shape), dtype=np.uint8)
    flat = frames.reshape(len(numbers), -1)
    flat[:, 0], flat[:, 1] = numbers // 256, numbers % 256
    return frames


def frame_transitions(found: Arrays) -> Transitions:
    """Take arrays through the door."""
    return build_transitions(found, "frames", "generated", validate(found, SPEC, False, Actions("scaled")))


def frame_config(**changes: Any) -> TrainConfig:
    """One member, width 16, batch 6: the smallest step that sees."""
    settings = TrainConfig(
        env="x", steps=100, batch_size=6, hidden=16, lr=1e-3, eta=2.0, sampling_steps=2, s0=2, s1=8,
        ema_start=1, ema_every=2, frame_stack=2, augment=0.5, device="cpu", backend="eager",
    )  # fmt: skip
    return replace(settings, **changes)


def frame_buffer(cfg: TrainConfig, device: str = "cpu") -> FrameBuffer:
    """Forty frames of 8 x 9 with two channels."""
    return FrameBuffer.from_transitions(frame_transitions(arrays([12, 9, 16])), cfg, device)


class Seek(gymnasium.Env):
    """A bright square in a dark picture 16 x 16; the action that points to it is rewarded, for four steps.

    Reward: 1 - |action - direction|^2, the direction of the square from the middle, in [-1, 1]^2.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None):
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return self._place(), {}

    def step(self, action):
        reward = 1.0 - float(np.square(np.asarray(action) - self.direction).sum())
        self.taken += 1
        return self._place(), reward, False, self.taken == 4, {}

    def render(self):
        return self.picture

    def _place(self) -> np.ndarray:
        row, column = self.np_random.integers(0, SIDE - 3, size=2)
        self.picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        self.picture[row : row + 4, column : column + 4] = (255, 200, 100)
        self.direction = np.array([row, column], np.float32) / (SIDE - 4) * 1.6 - 0.8
        return self.picture.copy()


gymnasium.register("gtp_fast_tests/Seek-v0", Seek, disable_env_checker=True)
SEEK = DataSpec("seek", "file", eval_env=EvalEnv("frame_cases:gtp_fast_tests/Seek-v0"))


def seek_file(path: Path, episodes: int = 150) -> Path:
    """Write an expert's episodes in D4RL's layout, each with its last picture as a row of its own."""
    env, columns = Seek(), {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for episode in range(episodes):
        picture, ended = env.reset(seed=episode)[0], False
        while not ended:
            action = env.direction.copy()
            following, reward, _, ended, _ = env.step(action)
            for key, value in zip(columns, (picture, action, reward, False, False), strict=True):
                columns[key].append(value)
            picture = following
        for key, value in zip(columns, (picture, np.zeros(2, np.float32), 0.0, False, True), strict=True):
            columns[key].append(value)
    return write(path, columns)
