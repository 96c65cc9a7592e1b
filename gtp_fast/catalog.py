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
    source: Literal["embedded", "d4rl", "minari", "ogbench", "file"]
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
# Bytes and sha256 of the published files, as recorded in the checksum lists of TensorFlow Datasets.
_PUBLISHED: dict[str, tuple[int, str]] = {
    "halfcheetah-medium-v2": (237727262, "41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0"),
    "halfcheetah-medium-replay-v2": (59448533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "halfcheetah-medium-expert-v2": (474567252, "015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06"),
    "hopper-medium-v2": (152756557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"),
    "hopper-medium-replay-v2": (75854457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "hopper-medium-expert-v2": (304537315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"),
    "walker2d-medium-v2": (232254996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"),
    "walker2d-medium-replay-v2": (86323963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "walker2d-medium-expert-v2": (462197079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"),
    "antmaze-umaze-v0": (232533093, "188838316eab5882fa0e1dc8398b5e79772f64f27f0b78d6aebe838402a720c6"),
    "antmaze-umaze-diverse-v0": (230854793, "4aff7f77b97a8dd62e513cac8f57da7cdb458cfac7ac0cec3081b7765f2da59d"),
    "antmaze-medium-play-v0": (231110993, "527385c14b87892e8c222c43246546d6cd461fa2a5476d0b3b105ae422b7637c"),
    "antmaze-medium-diverse-v0": (231095454, "b77764cac90c23e09905539c49ceb3949b49c5b39eb9d51788cc64b9dd0a2c0d"),
    "antmaze-large-play-v0": (230880746, "e37afef5b80b968b30cad2682f9a93ee1b400e3b58c7a7f45e7d425d03a2b03d"),
    "antmaze-large-diverse-v0": (231183929, "dda7acbdde1a94a14aa7b06a7e5d8141e60a03ccdc4578bff34b0444425bf11d"),
    "antmaze-umaze-v2": (232532949, "5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130"),
    "antmaze-umaze-diverse-v2": (230854272, "c771dd63963cd7d9f55f24a6d809064f6b82250a6aeac4c9d13f9a1d06e8c932"),
    "antmaze-medium-diverse-v2": (231095166, "ad9dcbac05d1f8744a7a216083f513662f43f64f28a4a5eb225e9811902dfae7"),
    "antmaze-large-play-v2": (230880653, "6d353df2457829925d7f9d4b0215587469908bd57478ea76f16417cfa944f471"),
    "antmaze-large-diverse-v2": (231183710, "84f775eb7956ea9cc766704710dc520a8ab357adc7522ade47f556f0e335e284"),
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


def _embedded() -> dict[str, DataSpec]:
    obs_dim, action_dim, random, expert = _BODIES["Hopper"]
    return {
        "multigoal-v0": DataSpec(
            "multigoal-v0",
            "embedded",
            obs_dim=2,
            action_dim=2,
            eval_env=EvalEnv("gtp_fast.embedded:gtp_fast/MultiGoal-v0"),
            ref_random=0.0,
            ref_expert=1.0,
            task="multigoal-v0",
        ),
        "hopper-demo-v0": DataSpec(
            "hopper-demo-v0",
            "embedded",
            filename="hopper-demo-v0.hdf5",
            obs_dim=obs_dim,
            action_dim=action_dim,
            eval_env=EvalEnv("Hopper-v5"),
            ref_random=random,
            ref_expert=expert,
            task="hopper-demo-v0",
        ),
    }


def _d4rl() -> dict[str, DataSpec]:
    specs = {}
    for level, short in _LEVELS.items():
        for body, env_id in _D4RL_ENV.items():
            name, filename = f"{body}-{level}-v2", f"{body}_{level.replace('-', '_')}-v2.hdf5"
            obs_dim, action_dim, random, expert = _BODIES[env_id.split("-")[0]]
            specs[name] = DataSpec(
                name,
                "d4rl",
                url=f"{D4RL_BASE}/gym_mujoco_v2/{filename}",
                filename=filename,
                obs_dim=obs_dim,
                action_dim=action_dim,
                eval_env=EvalEnv(env_id),
                ref_random=random,
                ref_expert=expert,
                task=name,
                paper_row=f"{body}-{short}",
            )
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
        name: replace(spec, size=_PUBLISHED[name][0], sha256=_PUBLISHED[name][1]) if name in _PUBLISHED else spec
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
        obs_dim, action_dim, random, expert = _BODIES[bodies[body]]
        env = EvalEnv(f"{bodies[body]}-v5")
        return DataSpec(name, "minari", None, None, None, None, obs_dim, action_dim, env, random, expert)
    if family == "D4RL" and body in _ADROIT:
        obs_dim, action_dim, random, expert = _ADROIT[body]
        env = EvalEnv(f"gymnasium_robotics:AdroitHand{body.capitalize()}-v1")
        return DataSpec(
            name, "minari", None, None, None, None, obs_dim, action_dim, env, random, expert, eval_episodes=100
        )
    return DataSpec(name, "minari", eval_episodes=100) if family == "D4RL" else None


def _ogbench(name: str) -> DataSpec | None:
    match = _OGBENCH.fullmatch(name)
    if match is None:
        return None
    file = re.sub(r"-singletask(-task[1-5])?", "", name) + ".npz"
    obs_dim, action_dim = {"single": (28, 5), "double": (37, 5)}.get(match[2] or "", (None, None))
    if match[1]:
        obs_dim = None  # images
    return DataSpec(
        name,
        "ogbench",
        url=f"{OGBENCH_BASE}/{file}",
        filename=file,
        obs_dim=obs_dim,
        action_dim=action_dim,
        eval_episodes=100,
    )


def _own_data(name: str) -> DataSpec | None:
    """Read a Gymnasium id that scores a policy trained on a file of one's own."""
    if name in OWN_DATA_ENVS:
        obs_dim, action_dim, random, expert = _BODIES[name.split("-")[0]]
        return DataSpec(name, "file", None, None, None, None, obs_dim, action_dim, EvalEnv(name), random, expert)
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
    rows = []
    for spec in map(resolve, known_names()):
        rows.append(
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
        )
    return rows


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
