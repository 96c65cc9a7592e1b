"""Maze environments: D4RL's ant mazes, and PointMaze of gymnasium-robotics with an end and a vector to observe.

AntMazeEnv is built at run time from Gymnasium's ant.xml and needs neither d4rl nor mujoco_py. Its numbers come from
Farama's D4RL (commit 89141a6), d4rl/locomotion: assets/ant.xml, maze_env.py (walls, goals), ant.py (observation,
reset), goal_reaching_env.py (reward, end), wrappers.py (actions), __init__.py (horizons). AntMaze of
gymnasium-robotics is another environment (docs/mazes.md).
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import TransformObservation

from gtp_fast.data.catalog import MAZES

HORIZON = {"umaze": 700, "medium": 1000, "large": 1000}  # steps; then the episode is truncated
CELL_M = 4.0
WALL_M = 2.0  # height
GOAL_RADIUS_M = 0.5
# Share of a cell: the goal is off its cell's centre by (u + v / 2) times this, u and v uniform in [0, 1].
GOAL_SPREAD = 0.25
FRAME_SKIP = 5  # physics steps of 0.02 s for each action: 10 actions per second
RESET_NOISE = 0.1  # half-width of the uniform noise on positions, and deviation of the normal noise on velocities
TORQUE = 30.0  # Nm for an action of 1
PICTURE = (320, 320)  # pixels, height and width

# D4RL's ant differs from Gymnasium's: 0.02 s for each physics step, softer contacts, a fifth of the torque.
_OPTION = {"timestep": "0.02"}
_GEOM = {"solref": ".02 1", "solimp": ".8 .8 .01"}
_MOTOR = {"gear": "1", "ctrlrange": f"{-TORQUE:g} {TORQUE:g}"}


def _cells(maze: str, mark: str) -> list[tuple[float, float]]:
    """Return the centres of a maze's cells with this mark, in metres from the ant's start."""
    rows = MAZES[maze]
    start_row, start = next((i, row.index("R")) for i, row in enumerate(rows) if "R" in row)
    marked = ((i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == mark)
    return [((j - start) * CELL_M, (i - start_row) * CELL_M) for i, j in marked]


def build_model(maze: str) -> mujoco.MjModel:
    """Compile D4RL's ant in one of its mazes; the site `goal` shows the goal when rendered and has no mass.

    Raises: ValueError for a maze that is not in MAZES.
    """
    if maze not in MAZES:
        raise ValueError(f"no ant maze is called {maze!r}; expected one of {', '.join(MAZES)}")
    tree = ET.parse(Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml")
    edits = (("option", _OPTION), ("default/geom", _GEOM), ("actuator/motor", _MOTOR))
    for element, values in ((found, values) for path, values in edits for found in tree.findall(path)):
        element.attrib.update(values)
    world = tree.find("worldbody")
    assert world is not None
    half = f"{CELL_M / 2} {CELL_M / 2} {WALL_M / 2}"
    look = {"type": "box", "size": half, "contype": "1", "conaffinity": "1", "rgba": "0.7 0.5 0.3 1"}
    for x, y in _cells(maze, "1"):
        ET.SubElement(world, "geom", look, pos=f"{x} {y} {WALL_M / 2}")
    ET.SubElement(world, "site", name="goal", type="cylinder", size=f"{GOAL_RADIUS_M} 0.02", rgba="0.9 0.1 0.1 1")
    return mujoco.MjModel.from_xml_string(ET.tostring(tree.getroot(), encoding="unicode"))


class AntMazeEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An ant that must reach a goal it does not observe: reward 1 within half a metre, where the episode ends.

    Observation: float64 (29,), position (15: x, y, z in metres, quaternion, eight joints in rad) and velocity (14).
    Action: (8,) in [-1, 1], in units of 30 Nm. Every reset draws a new goal, as D4RL's v2 names do. v0 kept one goal
    for the life of an environment, which says little about the maze ("high-variance", D4RL's own words).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, maze: str = "umaze", render_mode: str | None = None) -> None:
        self.model = build_model(maze)
        self.data = mujoco.MjData(self.model)
        self.observation_space = Box(-np.inf, np.inf, (29,), np.float64)
        self.action_space = Box(-1.0, 1.0, (8,), np.float32)
        self.render_mode = render_mode
        self.goal = np.zeros(2)  # x, y in metres
        self._maze, self._steps = maze, 0
        self._renderer: mujoco.Renderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Place the ant near the origin and draw a goal; info contains the goal."""
        super().reset(seed=seed)
        rng, goals = self.np_random, _cells(self._maze, "G")
        noise = (rng.uniform(size=2) + rng.uniform(size=2) / 2) * GOAL_SPREAD * CELL_M
        self.goal = np.maximum(goals[rng.integers(len(goals))] + noise, 0.0)
        self.model.site("goal").pos[:2] = self.goal
        self.set_state(
            self.model.qpos0 + rng.uniform(-RESET_NOISE, RESET_NOISE, self.model.nq),
            rng.standard_normal(self.model.nv) * RESET_NOISE,
        )
        self._steps = 0
        return self._observe(), {"goal": self.goal.copy()}

    def set_state(self, position: np.ndarray, velocity: np.ndarray) -> None:
        """Set positions (15,) and velocities (14,); contacts and constraint forces start at zero."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = position, velocity
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply the torques for a tenth of a second; info says whether the goal was reached."""
        self.data.ctrl[:] = TORQUE * np.clip(action, -1.0, 1.0)
        mujoco.mj_step(self.model, self.data, FRAME_SKIP)
        self._steps += 1
        obs = self._observe()
        reached = bool(np.linalg.norm(obs[:2] - self.goal) <= GOAL_RADIUS_M)
        return obs, float(reached), reached, self._steps >= HORIZON[self._maze], {"success": reached}

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw the whole maze from above, uint8 (320, 320, 3)."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, *PICTURE)
        walls = np.array(_cells(self._maze, "1"))
        camera = mujoco.MjvCamera()
        camera.lookat[:2] = (walls.min(axis=0) + walls.max(axis=0)) / 2
        camera.distance = 1.4 * (np.ptp(walls, axis=0).max() + CELL_M)
        camera.azimuth, camera.elevation = 90.0, -75.0
        self._renderer.update_scene(self.data, camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


gymnasium.register("gtp_fast/AntMaze-v0", "gtp_fast.evaluation.mazes:AntMazeEnv")


def point_maze(env_id: str = "PointMaze_UMaze-v3", render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Build a point that must reach a goal it observes: reward 1 within 0.45 of it, where the episode ends.

    Every reset draws start and goal. gymnasium-robotics returns a dictionary, and by default its episode goes on at the
    goal; data files hold vectors: the agent's observation, then its goal. Observation: float64 (6,), x, y, vx, vy, goal
    x, goal y. Action: (2,) in [-1, 1], forces. info says whether the goal was reached.
    Raises: ImportError without gymnasium-robotics.
    """
    # The id names the module: gymnasium imports it, and the module registers its environments.
    env = gymnasium.make(f"gymnasium_robotics:{env_id}", continuing_task=False, render_mode=render_mode)
    parts, keys = env.observation_space, ("observation", "desired_goal")
    assert isinstance(parts, Dict)
    vector = Box(-np.inf, np.inf, (sum(int(np.prod(parts[key].shape or ())) for key in keys),), np.float64)
    return TransformObservation(env, lambda obs: np.concatenate([obs[key] for key in keys]), vector)


gymnasium.register("gtp_fast/PointMaze-v0", "gtp_fast.evaluation.mazes:point_maze")
