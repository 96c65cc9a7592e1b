"""From the name of a data set to what is known of it: address, checksum, shapes, scoring environment, references.

In: a name that a person typed. Out: a `DataSpec`. No file is opened, no network used, neither torch nor gymnasium
imported. References and file sizes are D4RL's published ones; no entry is taken from the metadata of a data file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gtp_fast.errors import UsageError
from gtp_fast.published import PUBLISHED

Source = Literal["embedded", "d4rl", "minari", "ogbench", "file"]
D4RL_BASE = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
OGBENCH_BASE = "https://rail.eecs.berkeley.edu/datasets/ogbench"


@dataclass(frozen=True)
class EvalEnv:
    """The environment that scores a policy: a Gymnasium id (`module:Id-v0` imports the module) and its arguments."""

    id: str
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """What the catalogue knows of one data set; None where it does not know."""

    name: str
    source: Source
    url: str | None = None  # published address, whole
    filename: str | None = None  # base name in the cache directory
    size: int | None = None  # bytes of the published file
    sha256: str | None = None  # of the published file
    obs_dim: int | None = None
    action_dim: int | None = None
    eval_env: EvalEnv | None = None
    ref_random: float | None = None  # return of a random policy
    ref_expert: float | None = None  # return of D4RL's expert
    task: str | None = None  # stem of configs/tasks/*.yaml
    paper_row: str | None = None  # row of the paper's tables
    eval_episodes: int = 10


# observation size, action size, return of a random policy, return of the expert (D4RL's published references).
_BODIES: dict[str, tuple[int, int, float | None, float | None]] = {
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
# The ids that D4RL's v2 files are scored on: Hopper v5 adds a reward at the end, Walker2d v5 has another foot friction.
_D4RL_ENV = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}
# Environments that `--env` may name for a file of one's own.
OWN_DATA_ENVS = (
    *("HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5"),
    *("Ant-v5", "Swimmer-v5", "Reacher-v5"),
)
_LEVELS = {"medium": "m", "medium-replay": "mr", "medium-expert": "me"}
_MAZES = {
    "umaze": ("u", "u-maze_noisy_multistart_False_multigoal_False"),
    "umaze-diverse": ("ud", "u-maze_noisy_multistart_True_multigoal_True"),
    "medium-play": ("mp", "big-maze_noisy_multistart_True_multigoal_False"),
    "medium-diverse": ("md", "big-maze_noisy_multistart_True_multigoal_True"),
    "large-play": ("lp", "hardest-maze_noisy_multistart_True_multigoal_False"),
    "large-diverse": ("ld", "hardest-maze_noisy_multistart_True_multigoal_True"),
}
_ADROIT = {  # observation size, action size, random, expert
    "door": (39, 28, -56.512833, 2880.5693087298737),
    "hammer": (46, 26, -274.856578, 12794.134825156867),
    "pen": (45, 24, 96.262799, 3076.8331017826877),
    "relocate": (39, 30, -6.425911, 4233.877797728884),
}
_MINARI = re.compile(r"(mujoco|D4RL)/([a-z0-9]+)/([\w-]+)-v\d+")
_OGBENCH = re.compile(
    r"(visual-)?(?:cube-(single|double|triple|quadruple)|scene|puzzle-\dx\d|(?:ant|humanoid|point)maze-\w+|antsoccer-\w+)"
    r"-(?:play|noisy|navigate|stitch|explore)-singletask(?:-task[1-5])?-v0"
)
_OWN_MODULE = re.compile(r"[A-Za-z_][\w.]*:[\w./-]+-v\d+")


def _sizes(row: tuple[int, int, float | None, float | None]) -> dict[str, Any]:
    return dict(zip(("obs_dim", "action_dim", "ref_random", "ref_expert"), row, strict=True))


def _scored_on(name: str, source: Source, env_id: str, **known: Any) -> DataSpec:
    """Describe data of one of Gymnasium's MuJoCo bodies, scored on `env_id`."""
    return DataSpec(name, source, **_sizes(_BODIES[env_id.split("-")[0]]), eval_env=EvalEnv(env_id), **known)


def _embedded() -> dict[str, DataSpec]:
    goals = DataSpec(
        "multigoal-v0",
        "embedded",
        obs_dim=2,
        action_dim=2,
        eval_env=EvalEnv("gtp_fast.embedded:gtp_fast/MultiGoal-v0"),
        ref_random=0.0,
        ref_expert=1.0,
        task="multigoal-v0",
    )
    name = "hopper-demo-v0"
    return {goals.name: goals, name: _scored_on(name, "embedded", "Hopper-v5", filename=f"{name}.hdf5", task=name)}


def _d4rl() -> dict[str, DataSpec]:
    specs = {}
    for level, short in _LEVELS.items():
        for body, env_id in _D4RL_ENV.items():
            name, filename = f"{body}-{level}-v2", f"{body}_{level.replace('-', '_')}-v2.hdf5"
            url, row = f"{D4RL_BASE}/gym_mujoco_v2/{filename}", f"{body}-{short}"
            specs[name] = _scored_on(name, "d4rl", env_id, url=url, filename=filename, task=name, paper_row=row)
    for version, folder, suffix in (("v0", "ant_maze_new", ""), ("v2", "ant_maze_v2", "_fixed")):
        for maze, (short, stem) in _MAZES.items():
            name, filename = f"antmaze-{maze}-{version}", f"Ant_maze_{stem}_sparse{suffix}.hdf5"
            # eval_env stays None: gymnasium-robotics' AntMaze has another timestep, origin and goal radius than D4RL's.
            specs[name] = DataSpec(
                name,
                "d4rl",
                url=f"{D4RL_BASE}/{folder}/{filename}",
                filename=filename,
                obs_dim=29,
                action_dim=8,
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


_NAMED: dict[str, DataSpec] = {**_embedded(), **_d4rl()}


def _minari(name: str) -> DataSpec | None:
    """Read a Minari id; the environment is the catalogue's, never what the file's metadata names."""
    match = _MINARI.fullmatch(name)
    if match is None:
        return None
    family, body, _ = match.groups()
    bodies = {key.lower(): key for key in _BODIES}
    if family == "mujoco" and body in bodies:
        return _scored_on(name, "minari", f"{bodies[body]}-v5")
    if family == "D4RL" and body in _ADROIT:
        env = EvalEnv(f"gymnasium_robotics:AdroitHand{body.capitalize()}-v1")
        return DataSpec(name, "minari", **_sizes(_ADROIT[body]), eval_env=env, eval_episodes=100)
    return DataSpec(name, "minari", eval_episodes=100) if family == "D4RL" else None


def _ogbench(name: str) -> DataSpec | None:
    match = _OGBENCH.fullmatch(name)
    if match is None:
        return None
    file = re.sub(r"-singletask(-task[1-5])?", "", name) + ".npz"
    obs_dim, action_dim = {"single": (28, 5), "double": (37, 5)}.get(match[2] or "", (None, None))
    if match[1]:
        obs_dim = None  # images
    spec = DataSpec(name, "ogbench", url=f"{OGBENCH_BASE}/{file}", filename=file, eval_episodes=100)
    return replace(spec, obs_dim=obs_dim, action_dim=action_dim)


def _own_data(name: str) -> DataSpec | None:
    """Read a Gymnasium id that scores a policy trained on a file of one's own."""
    if name in OWN_DATA_ENVS:
        return _scored_on(name, "file", name)
    if _OWN_MODULE.fullmatch(name):
        return DataSpec(name, "file", eval_env=EvalEnv(name))
    return None


def resolve(name: str) -> DataSpec:
    """Find what a name stands for: embedded, D4RL, Minari, OGBench, then an environment for a file of one's own.

    Args:
        name: data set name, or a Gymnasium id to go with `--dataset` (`Hopper-v5`, `my_module:MyEnv-v0`).
    Returns:
        The entry; `source` says which kind it is.
    Raises:
        UsageError: no such name; the message lists the nearest ones.

    >>> resolve("hopper-medium-v2").paper_row
    'hopper-m'
    """
    spec = _NAMED.get(name) or _minari(name) or _ogbench(name) or _own_data(name)
    if spec is not None:
        return spec
    near = difflib.get_close_matches(name, known_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"for example {', '.join(list(_NAMED)[:3])}."
    raise UsageError(f"--env: no data set is called '{name}'; {hint} `gtp-fast data list` shows every name.")


def known_names() -> list[str]:
    """List the names that can be written out: all but the patterns, of which it holds the usual members."""
    minari = [f"mujoco/{b.lower()}/{lv}-v0" for b in list(_BODIES)[:4] for lv in ("simple", "medium", "expert")]
    adroit = [f"D4RL/{hand}/{lv}-v2" for hand in _ADROIT for lv in ("human", "cloned", "expert")]
    cubes = [f"{v}cube-{n}-play-singletask-v0" for v in ("", "visual-") for n in ("single", "double")]
    return [*_NAMED, *minari, *adroit, *cubes, *OWN_DATA_ENVS]


def listing() -> list[dict[str, Any]]:
    """Describe every known name in one flat row: name, source, shapes, environment, address, row of the paper."""
    return [
        {
            "name": spec.name,
            "source": spec.source,
            "obs_dim": spec.obs_dim,
            "action_dim": spec.action_dim,
            "eval_env": spec.eval_env.id if spec.eval_env else None,
            "megabytes": round(spec.size / 1e6, 1) if spec.size else None,
            "url": spec.url,
            "paper_row": spec.paper_row,
        }
        for spec in map(resolve, known_names())
    ]


def normalised_score(spec: DataSpec, returns: float | Sequence[float] | np.ndarray) -> np.ndarray | None:
    """Express returns in D4RL's scale, 100 (R - random) / (expert - random).

    Args:
        spec: the entry whose references count.
        returns: raw returns, any shape.
    Returns:
        float64 of the same shape, 0 for the random policy and 100 for the expert; None where no reference is known.
    """
    if spec.ref_random is None or spec.ref_expert is None:
        return None
    return 100.0 * (np.asarray(returns, np.float64) - spec.ref_random) / (spec.ref_expert - spec.ref_random)
