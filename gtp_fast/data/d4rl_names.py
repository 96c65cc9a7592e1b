"""D4RL's names: the nine Gym data sets and the six AntMaze ones, in both versions, with their published references."""

from __future__ import annotations

from dataclasses import replace

from gtp_fast.data.published import PUBLISHED
from gtp_fast.data.spec import DataSpec, EvalEnv, scored_on

D4RL_BASE = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
# The ids that D4RL's v2 files are scored on: Hopper v5 adds a reward at the end, Walker2d v5 has another foot friction.
_D4RL_ENV = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}
_LEVELS = {"medium": "m", "medium-replay": "mr", "medium-expert": "me"}
_MAZES = {
    "umaze": ("u", "u-maze_noisy_multistart_False_multigoal_False"),
    "umaze-diverse": ("ud", "u-maze_noisy_multistart_True_multigoal_True"),
    "medium-play": ("mp", "big-maze_noisy_multistart_True_multigoal_False"),
    "medium-diverse": ("md", "big-maze_noisy_multistart_True_multigoal_True"),
    "large-play": ("lp", "hardest-maze_noisy_multistart_True_multigoal_False"),
    "large-diverse": ("ld", "hardest-maze_noisy_multistart_True_multigoal_True"),
}


def entries() -> dict[str, DataSpec]:
    """Return every name with its entry."""
    specs = {}
    for level, short in _LEVELS.items():
        for body, env_id in _D4RL_ENV.items():
            name, filename = f"{body}-{level}-v2", f"{body}_{level.replace('-', '_')}-v2.hdf5"
            url, row = f"{D4RL_BASE}/gym_mujoco_v2/{filename}", f"{body}-{short}"
            specs[name] = scored_on(name, "d4rl", env_id, url=url, filename=filename, task=name, paper_row=row)
    for version, folder, suffix in (("v0", "ant_maze_new", ""), ("v2", "ant_maze_v2", "_fixed")):
        for maze, (short, stem) in _MAZES.items():
            name, filename = f"antmaze-{maze}-{version}", f"Ant_maze_{stem}_sparse{suffix}.hdf5"
            specs[name] = DataSpec(
                name,
                "d4rl",
                url=f"{D4RL_BASE}/{folder}/{filename}",
                filename=filename,
                obs_dim=29,
                action_dim=8,
                eval_env=EvalEnv("gtp_fast.evaluation.mazes:gtp_fast/AntMaze-v0", (("maze", maze.split("-")[0]),)),
                ref_random=0.0,
                ref_expert=1.0,
                task=f"antmaze-{maze}-v0",
                paper_row=f"antmaze-{short}",
                eval_episodes=100,
            )
    return {
        name: replace(spec, size=PUBLISHED[name][0], sha256=PUBLISHED[name][1]) if name in PUBLISHED else spec
        for name, spec in specs.items()
    }
