"""The catalogue's entry of one data set: address, checksum, shapes, scoring environment, references; D4RL's score.

In: published figures, from the catalogue. Out: `DataSpec`, and scores on D4RL's scale. Nothing is read or imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Bounds = tuple[tuple[float, ...], tuple[float, ...]]  # low, high of each action
ObsShape = int | tuple[int, int, int]  # vector size, or height, width and channels of (stacked) frames
Source = Literal["embedded", "d4rl", "minari", "ogbench", "file"]
Units = Literal["scaled", "environment"]  # of actions: -1 and 1 stand for the bounds, or the environment's own


@dataclass(frozen=True)
class EvalEnv:
    """The environment that scores a policy: a Gymnasium id (`module:Id-v0` imports the module) and its arguments.

    max_steps, of an episode, is the user's; 0: the environment's own limit.
    """

    id: str
    kwargs: tuple[tuple[str, Any], ...] = ()
    max_steps: int = 0


@dataclass(frozen=True)
class DataSpec:
    """The catalogue's entry of one data set; None for what is unknown."""

    name: str
    source: Source
    url: str | None = None  # published address
    filename: str | None = None  # base name in the cache directory
    size: int | None = None  # bytes of the published file
    sha256: str | None = None  # of the published file
    obs_dim: int | None = None
    obs_shape: tuple[int, int, int] | None = None  # height, width, channels of frames; obs_dim is then None
    action_dim: int | None = None
    action_bounds: Bounds | None = None  # of the environment's action space
    eval_env: EvalEnv | None = None
    ref_random: float | None = None  # return of a random policy
    ref_expert: float | None = None  # return of D4RL's expert
    task: str | None = None  # stem of configs/tasks/*.yaml
    paper_row: str | None = None  # row of the paper's tables
    eval_episodes: int = 10
    score: Literal["return", "success"] = "return"  # scores come from returns, or from the share of successes


# Observation size, action size, return of a random policy, return of the expert (D4RL's published references).
BODIES: dict[str, tuple[int, int, float | None, float | None]] = {
    "HalfCheetah": (17, 6, -280.178953, 12135.0),
    "Hopper": (11, 3, -20.272305, 3234.3),
    "Walker2d": (17, 6, 1.629008, 4592.3),
    "Ant": (105, 8, -325.6, 3879.7),
    "Swimmer": (8, 2, None, None),
    "Reacher": (10, 2, None, None),
    "Humanoid": (348, 17, None, None),
    "HumanoidStandup": (348, 17, None, None),
    "Pusher": (23, 7, None, None),
    "InvertedPendulum": (4, 1, None, None),
    "InvertedDoublePendulum": (9, 1, None, None),
}


def sizes(row: tuple[int, int, float | None, float | None]) -> dict[str, Any]:
    """Return a row of BODIES under the field names of DataSpec."""
    return dict(zip(("obs_dim", "action_dim", "ref_random", "ref_expert"), row, strict=True))


def scored_on(name: str, source: Source, env_id: str, **known: Any) -> DataSpec:
    """Return the entry of a data set of one of Gymnasium's MuJoCo bodies, scored on `env_id`."""
    return DataSpec(name, source, **sizes(BODIES[env_id.split("-")[0]]), eval_env=EvalEnv(env_id), **known)


def normalised_score(spec: DataSpec, returns: float | Sequence[float] | np.ndarray) -> np.ndarray | None:
    """Normalise returns to D4RL's scale, 100 (R - random) / (expert - random).

    Args: spec, the entry with the references; returns, raw ones of any shape. Returns float64 of the same shape, 0 for
    the random policy and 100 for the expert; None where no reference is known.
    """
    if spec.ref_random is None or spec.ref_expert is None:
        return None
    return 100.0 * (np.asarray(returns, np.float64) - spec.ref_random) / (spec.ref_expert - spec.ref_random)


def with_references(spec: DataSpec, references: Sequence[float] | None) -> DataSpec:
    """Return the entry with the data set's own references (random, expert) if the catalogue has none."""
    if references is None or spec.ref_random is not None or spec.ref_expert is not None:
        return spec
    return replace(spec, ref_random=references[0], ref_expert=references[1])


def are_frames(array: Any) -> bool:
    """Return whether observations, of NumPy or h5py, are images: uint8 with four axes (N, H, W, C)."""
    return array.dtype == np.uint8 and array.ndim == 4
