"""Minari's ids. The environment is chosen here, never by what a file's metadata names."""

from __future__ import annotations

import re
from typing import Any

from gtp_fast.data.maze_maps import cells
from gtp_fast.data.spec import BODIES, DataSpec, EvalEnv, scored_on, sizes

_ADROIT = {  # observation size, action size, random, expert
    "door": (39, 28, -56.512833, 2880.5693087298737),
    "hammer": (46, 26, -274.856578, 12794.134825156867),
    "pen": (45, 24, 96.262799, 3076.8331017826877),
    "relocate": (39, 30, -6.425911, 4233.877797728884),
}
_POINT_MAZES = {name.lower(): name for name in ("Open", "UMaze", "Medium", "Large")}
# Environment, and the map that it is given: walls as in the data, from corner to corner.
_ANT_MAZES: dict[str, tuple[str, Any]] = {
    "umaze": ("UMaze", (*cells("umaze")[:1], *cells("umaze")[3:0:-1], *cells("umaze")[4:])),
    "umaze-diverse": ("UMaze", None),
    **{
        f"{size}-{kind}": (size.capitalize(), cells(size))
        for size in ("medium", "large")
        for kind in ("play", "diverse")
    },
}
_MINARI = re.compile(r"(mujoco|D4RL)/([a-z0-9]+)/([\w-]+)-v\d+")
# Namespaces of any depth, or none: then minari: says that the name is not D4RL's.
_ID = re.compile(r"(?:minari:)?([\w-]+(?:/[\w-]+)+-v\d+)|minari:([\w-]+-v\d+)", re.ASCII)


def dataset_id(name: str) -> str | None:
    """Return the Minari id that a name stands for: NAMESPACE/.../NAME-vN, minari:NAME-vN; None for another name."""
    match = _ID.fullmatch(name)
    return match and (match[1] or match[2])


def entry(name: str) -> DataSpec | None:
    """Read a Minari id; the environment is the catalogue's, never what the file's metadata names."""
    found = dataset_id(name)
    if found is None:
        return None
    name = found
    match = _MINARI.fullmatch(name)
    if match is None:
        return DataSpec(name, "minari")
    family, body, level = match.groups()
    bodies = {key.lower(): key for key in BODIES}
    if family == "mujoco" and body in bodies:
        return scored_on(name, "minari", f"{bodies[body]}-v5")
    if family == "D4RL" and body in _ADROIT:
        env = EvalEnv(f"gymnasium_robotics:AdroitHand{body.capitalize()}-v1")
        return DataSpec(name, "minari", **sizes(_ADROIT[body]), eval_env=env, eval_episodes=100)
    maze = _maze(name, body, level) if family == "D4RL" else None
    return maze or DataSpec(name, "minari", eval_episodes=100 if family == "D4RL" else 10)


def _maze(name: str, body: str, level: str) -> DataSpec | None:
    """Describe Minari's mazes, which are gymnasium-robotics' own and not D4RL's; a goal ends the episode.

    The score is the share of episodes that reach it. Observations are dictionaries, whose size is the reader's to say.
    """
    stem, dense = level.removesuffix("-dense"), level.endswith("-dense")
    known: dict[str, Any] = {"eval_episodes": 100, "score": "success", "ref_random": 0.0, "ref_expert": 1.0}
    kwargs: dict[str, Any] = {"continuing_task": False}
    if body == "pointmaze" and stem in _POINT_MAZES:
        env_id = f"gymnasium_robotics:PointMaze_{_POINT_MAZES[stem]}{'Dense' * dense}-v3"
        return DataSpec(name, "minari", action_dim=2, eval_env=EvalEnv(env_id, tuple(kwargs.items())), **known)
    if body == "antmaze" and level in _ANT_MAZES:
        maze, maze_map = _ANT_MAZES[level]
        kwargs |= {"maze_map": maze_map} if maze_map else {}
        env = EvalEnv(f"gymnasium_robotics:AntMaze_{maze}-v4", tuple(kwargs.items()))
        return DataSpec(name, "minari", action_dim=8, eval_env=env, **known)
    return None


def known() -> list[str]:
    """List the usual members of the pattern."""
    bodies = [f"mujoco/{b.lower()}/{lv}-v0" for b in list(BODIES)[:4] for lv in ("simple", "medium", "expert")]
    points = [f"D4RL/pointmaze/{maze}{kind}-v2" for maze in _POINT_MAZES for kind in ("", "-dense")]
    mazes = [*points, *(f"D4RL/antmaze/{maze}-v1" for maze in _ANT_MAZES)]
    return [*bodies, *mazes, *(f"D4RL/{hand}/{lv}-v2" for hand in _ADROIT for lv in ("human", "cloned", "expert"))]
