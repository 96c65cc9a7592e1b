"""Minari data sets of random actions, written by Minari itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple
from minari.data_collector import EpisodeBuffer

BOX, UNIT = Box(-100, 100, (4,), np.float32), Box(-1, 1, (2,), np.float32)


def filled(space: gymnasium.Space[Any], count: int) -> Any:
    """Return observations of a space: boxes of one axis count the steps, the others are drawn."""
    if isinstance(space, Dict):
        return {key: filled(space[key], count) for key in space}
    if isinstance(space, Tuple):
        return tuple(filled(part, count) for part in space)
    if isinstance(space, Box) and len(space.shape) == 1:
        return np.stack([np.full(space.shape, t, space.dtype) for t in range(count)])
    return np.stack([np.asarray(space.sample()) for _ in range(count)])


def collect(
    name: str, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], terminal: bool = True, **metadata: Any
) -> Path:
    """Write three episodes of five random actions; metadata is added to the file's own, None leaves a key out."""
    actions.seed(0)
    observations.seed(0)
    last = [False] * 4 + [True]
    buffers = [
        EpisodeBuffer(
            id=episode,
            observations=filled(observations, 6),
            actions=np.stack([actions.sample() for _ in last]),
            rewards=[1.0 for _ in last],
            terminations=last if terminal else [False for _ in last],
            truncations=[False for _ in last] if terminal else last,
            infos={"qpos": np.zeros((6, 3))},
        )
        for episode in range(3)
    ]
    minari.create_dataset_from_buffers(name, buffers, observation_space=observations, action_space=actions)
    path = minari.storage.get_dataset_path(name)
    file = path / "data" / "metadata.json"
    about = json.loads(file.read_text()) | metadata
    file.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    return path
