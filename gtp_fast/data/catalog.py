"""From the name of a data set to its entry.

In: a name that the user typed. Out: a `DataSpec`. Nothing is opened or downloaded, and neither torch nor gymnasium is
imported, except gymnasium for a name that is none of those below: it may be registered there. References and file
sizes are published ones; the metadata of a data file contributes nothing. After the public functions, each source has
its names and constants in turn: embedded, D4RL, Minari, OGBench, your own data.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_fast import presets
from gtp_fast.config import TrainConfig, environment_arguments
from gtp_fast.data import gym_ids
from gtp_fast.data.spec import BODIES, DataSpec, EvalEnv, scored_on, sizes
from gtp_fast.data.trust import WITH_MODULE, refuse_imports_of_files
from gtp_fast.data.units import unit
from gtp_fast.errors import UsageError

_LINE = "{:43} {:8} {:>9} {:9} {:53} {}"
HEAD = _LINE.format("name", "source", "size", "obs/act", "environment", "what scores 0 and 100")


def resolve(name: str, env_kwargs: str | None = None) -> DataSpec:
    """Return the entry of a name: embedded, D4RL, Minari, OGBench, then an environment for the user's own file.

    Args: name, of a data set, or a Gymnasium id to go with `--dataset` (`Hopper-v5`, `my_module:MyEnv-v0`), which
    another process may not have registered. env_kwargs, arguments of that environment as JSON, above the entry's own.
    Raises: UsageError when there is no such name; the message lists the nearest ones of the same kind.

    >>> resolve("hopper-medium-v2").paper_row
    'hopper-m'
    """
    spec = _NAMED.get(name) or _minari_or_registered(name) or ogbench_entry(name) or _own_data_entry(name)
    if spec is None:
        raise UsageError(_unknown(name))
    return _with_arguments(_with_known_bounds(spec), environment_arguments(env_kwargs))


def of_run(settings: Mapping[str, Any]) -> DataSpec:
    """Return the entry with which a run is reported; without references where only the trainer's process knows it."""
    try:
        return resolve(settings["env"], settings.get("env_kwargs"))
    except UsageError:
        return DataSpec(settings["env"], "file")


def _with_arguments(spec: DataSpec, given: dict[str, Any]) -> DataSpec:
    """Return the entry with arguments of its environment, for data of one's own and Minari's.

    They may change the environment's sizes and bounds, which are then unknown.
    """
    if not given:
        return spec
    if spec.source not in ("file", "minari"):
        raise UsageError(
            f"--env-kwargs: {spec.name} names data whose environment is fixed; leave it out, or name the environment "
            "with --env ID and the data with --dataset PATH"
        )
    if spec.eval_env is None:
        raise UsageError(
            f"--env-kwargs: {spec.name} names no environment; name it with --env ID --dataset minari:{spec.name}"
        )
    kwargs = dict(spec.eval_env.kwargs) | given
    env = EvalEnv(spec.eval_env.id, tuple(kwargs.items()))
    return replace(spec, eval_env=env, obs_dim=None, obs_shape=None, action_dim=None, action_bounds=None)


def _with_known_bounds(spec: DataSpec) -> DataSpec:
    """Return the entry with the bounds of its actions where they are known: all that is listed has -1 and 1."""
    listed = spec.name in OWN_DATA_ENVS or spec.name in POINT_MAZES or spec.source in ("embedded", "d4rl", "ogbench")
    if spec.action_dim is None or not (listed or ogbench_task(spec)):
        return spec
    return replace(spec, action_bounds=unit(spec.action_dim))


def run_settings(flags: Mapping[str, Any], file: Path | None = None, allowed: Iterable[str] = ()) -> TrainConfig:
    """Return the settings of a run: explicit flags override the YAML file, which overrides the presets of the task.

    Args: allowed, modules that an environment which a file names may import.
    Raises: UsageError for unknown names, with the nearest match, for wrong types, for values out of range, and for a
    file that names another module.
    """
    of_file, of_flags = presets.read_yaml(file) if file else {}, presets.checked(flags, "the flags")
    typed = of_file | of_flags
    spec = resolve(typed["env"], typed.get("env_kwargs")) if typed.get("env") else None
    cfg = presets.merge(typed, spec.task if spec else None)
    refuse_imports_of_files(cfg, of_flags, of_file, file, allowed)
    return cfg


def _unknown(name: str) -> str:
    """Return the error about a name that nothing is called by: the nearest names of the kind that it resembles most."""
    typed, kinds = name.lower(), [list(_NAMED), minari_names(), ogbench_names()]
    near: list[str] = []
    best = 0.0
    for names in kinds if ":" not in name else ():
        lower = {one.lower(): one for one in names}
        found = difflib.get_close_matches(typed, lower, n=3, cutoff=0.5)
        if found and (ratio := difflib.SequenceMatcher(None, found[0], typed).ratio()) > best:
            near, best = [lower[one] for one in found], ratio
    environments = gym_ids.nearest(name, (*OWN_DATA_ENVS, *POINT_MAZES))
    if environments and difflib.SequenceMatcher(None, environments[0].lower(), typed).ratio() >= best:
        near = environments
    hint = f"did you mean {' or '.join(near)}?" if near else f"for example {', '.join(list(_NAMED)[:3])}."
    registered = "" if gym_ids.ids() else " (gymnasium, which knows their ids, is not installed)"
    return (
        f"--env: no data set is called '{name}', and no environment{registered}; {hint} `gtp-fast data list` shows "
        "every name. For a file of your own: --env ID --dataset FILE, where ID is any id that Gymnasium knows, or "
        "module:ID (docs/data.md)."
    )


def known_names() -> list[str]:
    """List the names: all of those that are fixed, and the usual ones of those that follow a pattern."""
    return [*_NAMED, *minari_names(), *ogbench_names(), *OWN_DATA_ENVS, *POINT_MAZES]


def listing() -> list[dict[str, Any]]:
    """Describe every known name in one flat row: name, source, size, shapes, environment, references, address."""
    return [
        {
            "name": spec.name,
            "source": spec.source,
            "obs_dim": spec.obs_dim,
            "obs_shape": list(spec.obs_shape) if spec.obs_shape else None,
            "action_dim": spec.action_dim,
            "eval_env": spec.eval_env.id if spec.eval_env else None,
            "megabytes": round(spec.size / 1e6, 1) if spec.size else None,
            "score": spec.score,
            "ref_random": spec.ref_random,
            "ref_expert": spec.ref_expert,
            "url": spec.url,
            "paper_row": spec.paper_row,
        }
        for spec in map(resolve, known_names())
    ]


def line(row: dict[str, Any]) -> str:
    """Format a row of `listing` for the terminal: a dash for unknown values; the references score 0 and 100."""
    seen = "x".join(map(str, row["obs_shape"] or ())) or row["obs_dim"] or "?"
    shapes, size = f"{seen}/{row['action_dim'] or '?'}", f"{row['megabytes']} MB" if row["megabytes"] else "-"
    ends = (row["ref_random"], row["ref_expert"])
    refs = "-" if None in ends else f"{row['score']} {' to '.join(f'{end:.6g}' for end in ends)}"
    return _LINE.format(row["name"], row["source"], size, shapes, row["eval_env"] or "-", refs)


def _embedded() -> dict[str, DataSpec]:
    goals = DataSpec(
        "multigoal-v0",
        "embedded",
        obs_dim=2,
        action_dim=2,
        eval_env=EvalEnv("gtp_fast.evaluation.multigoal:gtp_fast/MultiGoal-v0"),
        ref_random=0.0,
        ref_expert=1.0,
        task="multigoal-v0",
    )
    name = "hopper-demo-v0"
    return {goals.name: goals, name: scored_on(name, "embedded", "Hopper-v5", filename=f"{name}.hdf5", task=name)}


# Bytes and SHA-256 of D4RL's files, from the checksum lists of TensorFlow Datasets. A file that is not listed here is
# checked by its length alone.
PUBLISHED: dict[str, tuple[int, str]] = {
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

D4RL_BASE = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
# The environments that score D4RL's v2 files. Not v5 for two: Hopper-v5 adds a reward at the end, and Walker2d-v5 has
# another foot friction.
_D4RL_ENV = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}
_D4RL_LEVELS = {"medium": "m", "medium-replay": "mr", "medium-expert": "me"}
_D4RL_MAZES = {
    "umaze": ("u", "u-maze_noisy_multistart_False_multigoal_False"),
    "umaze-diverse": ("ud", "u-maze_noisy_multistart_True_multigoal_True"),
    "medium-play": ("mp", "big-maze_noisy_multistart_True_multigoal_False"),
    "medium-diverse": ("md", "big-maze_noisy_multistart_True_multigoal_True"),
    "large-play": ("lp", "hardest-maze_noisy_multistart_True_multigoal_False"),
    "large-diverse": ("ld", "hardest-maze_noisy_multistart_True_multigoal_True"),
}

# The maps of D4RL's mazes: '1' wall, '0' free, 'R' start of the agent, 'G' goal. From U_MAZE_TEST, BIG_MAZE_TEST and
# HARDEST_MAZE_TEST in d4rl/locomotion/maze_env.py of Farama's D4RL (89141a6).
MAZES = {
    "umaze": ("11111", "1R001", "11101", "1G001", "11111"),
    "medium": ("11111111", "1R011001", "10010001", "11000111", "10010001", "10100101", "100010G1", "11111111"),
    "large": (
        *("111111111111", "1R0001000001", "101101010101", "100000010001", "101111011101", "100101000001"),
        *("110101010111", "100100010G01", "111111111111"),
    ),
}


def d4rl_entries() -> dict[str, DataSpec]:
    """Return the entries of the nine Gym data sets (v2) and the six AntMaze ones (v0 and v2), by name."""
    specs = {}
    for level, short in _D4RL_LEVELS.items():
        for body, env_id in _D4RL_ENV.items():
            name, filename = f"{body}-{level}-v2", f"{body}_{level.replace('-', '_')}-v2.hdf5"
            url, row = f"{D4RL_BASE}/gym_mujoco_v2/{filename}", f"{body}-{short}"
            specs[name] = scored_on(name, "d4rl", env_id, url=url, filename=filename, task=name, paper_row=row)
    for version, folder, suffix in (("v0", "ant_maze_new", ""), ("v2", "ant_maze_v2", "_fixed")):
        for maze, (short, stem) in _D4RL_MAZES.items():
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


def maze_map(maze: str) -> tuple[tuple[int | str, ...], ...]:
    """Return a map in the form of gymnasium-robotics: 1 and 0 as numbers, 'r' and 'g' as letters."""
    return tuple(tuple(int(c) if c in "01" else c.lower() for c in row) for row in MAZES[maze])


_ADROIT = {  # observation size, action size, return of a random policy, of the expert
    "door": (39, 28, -56.512833, 2880.5693087298737),
    "hammer": (46, 26, -274.856578, 12794.134825156867),
    "pen": (45, 24, 96.262799, 3076.8331017826877),
    "relocate": (39, 30, -6.425911, 4233.877797728884),
}
_MINARI_POINT_MAZES = {name.lower(): name for name in ("Open", "UMaze", "Medium", "Large")}
# Environment, and the map passed to it: the data's walls, with start and goal in opposite corners. None: its own map.
_MINARI_ANT_MAZES: dict[str, tuple[str, Any]] = {
    "umaze": ("UMaze", (*maze_map("umaze")[:1], *maze_map("umaze")[3:0:-1], *maze_map("umaze")[4:])),
    "umaze-diverse": ("UMaze", None),
    **{
        f"{size}-{kind}": (size.capitalize(), maze_map(size))
        for size in ("medium", "large")
        for kind in ("play", "diverse")
    },
}
_MINARI_FAMILY = re.compile(r"(mujoco|D4RL)/([a-z0-9]+)/([\w-]+)-v\d+")
# Namespaces of any depth. A name without one needs the prefix minari:, or it could be D4RL's.
_MINARI_ID = re.compile(r"(?:minari:)?([\w-]+(?:/[\w-]+)+-v\d+)|minari:([\w-]+-v\d+)", re.ASCII)


def minari_id(name: str) -> str | None:
    """Return the Minari id in a name of the form NAMESPACE/.../NAME-vN or minari:NAME-vN; None for other names."""
    match = _MINARI_ID.fullmatch(name)
    return match and (match[1] or match[2])


def _minari_or_registered(name: str) -> DataSpec | None:
    """Return the entry of a Minari id, unless it is an environment registered in this process (`ns/Name-v0`).

    `minari:ns/Name-v0` is always Minari's.
    """
    spec = minari_entry(name)
    if spec is None or spec.eval_env is not None or name.startswith("minari:"):
        return spec
    return None if name in gym_ids.ids() else spec


def minari_entry(name: str) -> DataSpec | None:
    """Return the entry of a Minari id. The environment is chosen here and never taken from the file's metadata."""
    found = minari_id(name)
    if found is None:
        return None
    name = found
    match = _MINARI_FAMILY.fullmatch(name)
    if match is None:
        return DataSpec(name, "minari")
    family, body, level = match.groups()
    bodies = {key.lower(): key for key in BODIES}
    if family == "mujoco" and body in bodies:
        return scored_on(name, "minari", f"{bodies[body]}-v5")
    if family == "D4RL" and body in _ADROIT:
        env = EvalEnv(f"gymnasium_robotics:AdroitHand{body.capitalize()}-v1")
        return DataSpec(name, "minari", **sizes(_ADROIT[body]), eval_env=env, eval_episodes=100)
    maze = _minari_maze(name, body, level) if family == "D4RL" else None
    return maze or DataSpec(name, "minari", eval_episodes=100 if family == "D4RL" else 10)


def _minari_maze(name: str, body: str, level: str) -> DataSpec | None:
    """Return the entry of a Minari maze: gymnasium-robotics' mazes, not D4RL's, in which the goal ends an episode.

    The score is the share of episodes that reach the goal. Observations are dictionaries; the reader finds their size.
    """
    stem, dense = level.removesuffix("-dense"), level.endswith("-dense")
    shared: dict[str, Any] = {"eval_episodes": 100, "score": "success", "ref_random": 0.0, "ref_expert": 1.0}
    kwargs: dict[str, Any] = {"continuing_task": False}
    if body == "pointmaze" and stem in _MINARI_POINT_MAZES:
        env_id = f"gymnasium_robotics:PointMaze_{_MINARI_POINT_MAZES[stem]}{'Dense' * dense}-v3"
        return DataSpec(name, "minari", action_dim=2, eval_env=EvalEnv(env_id, tuple(kwargs.items())), **shared)
    if body == "antmaze" and level in _MINARI_ANT_MAZES:
        maze, walls = _MINARI_ANT_MAZES[level]
        kwargs |= {"maze_map": walls} if walls else {}
        env = EvalEnv(f"gymnasium_robotics:AntMaze_{maze}-v4", tuple(kwargs.items()))
        return DataSpec(name, "minari", action_dim=8, eval_env=env, **shared)
    return None


def minari_names() -> list[str]:
    """List the usual Minari names."""
    bodies = [f"mujoco/{b.lower()}/{lv}-v0" for b in list(BODIES)[:4] for lv in ("simple", "medium", "expert")]
    points = [f"D4RL/pointmaze/{maze}{kind}-v2" for maze in _MINARI_POINT_MAZES for kind in ("", "-dense")]
    mazes = [*points, *(f"D4RL/antmaze/{maze}-v1" for maze in _MINARI_ANT_MAZES)]
    return [*bodies, *mazes, *(f"D4RL/{hand}/{lv}-v2" for hand in _ADROIT for lv in ("human", "cloned", "expert"))]


OGBENCH_BASE = "https://rail.eecs.berkeley.edu/datasets/ogbench"
OGBENCH_FRAME = (64, 64, 3)  # height, width, channels of an image observation, uint8
OGBENCH_EPISODES = 50  # as in FQL's published evaluation of these tasks
# The names in the paper's tables, and the data set of each. Its rows with vector observations name no task: they mean
# OGBench's default.
_OGBENCH_PAPER = {
    "cube-single-singletask": "cube-single-play-singletask-v0",
    "cube-double-singletask": "cube-double-play-singletask-v0",
    "visual-cube-single-play-singletask-task1-v0": "visual-cube-single-play-singletask-task1-v0",
    "visual-cube-double-play-singletask-task1-v0": "visual-cube-double-play-singletask-task1-v0",
}
_OGBENCH_SHORT = {row.split("-play-")[0].removesuffix("-singletask"): row for row in _OGBENCH_PAPER}
# Observation and action sizes of ogbench 1.2.2's environments; a test compares them with the package.
_CUBES = {
    f"cube-{word}": (19 + 9 * n, 5) for word, n in (("single", 1), ("double", 2), ("triple", 3), ("quadruple", 4))
}
_PUZZLES = {"puzzle-3x3": (55, 5), "puzzle-4x4": (83, 5), "puzzle-4x5": (99, 5), "puzzle-4x6": (115, 5)}
_OGBENCH_MAZES = {
    **{f"pointmaze-{maze}": (2, 2) for maze in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{maze}": (29, 8) for maze in ("medium", "large", "giant", "teleport")},
    **{f"humanoidmaze-{maze}": (69, 21) for maze in ("medium", "large", "giant")},
    **{f"antsoccer-{field}": (42, 8) for field in ("arena", "medium")},
}
OGBENCH_SIZES = {**_CUBES, "scene": (40, 5), **_PUZZLES, **_OGBENCH_MAZES}
_OGBENCH_STATES_ONLY = ("pointmaze", "antsoccer")  # have no visual version
_OGBENCH_STEM = "|".join(OGBENCH_SIZES)
_OGBENCH_TASK = r"-singletask(?P<task>-task[1-5])?-v0"
_OGBENCH_NAME = re.compile(
    rf"(?P<visual>visual-)?(?P<stem>{_OGBENCH_STEM})-(?P<kind>play|noisy|navigate|stitch|explore){_OGBENCH_TASK}"
)
_OGBENCH_ENV = re.compile(rf"ogbench:(?P<visual>visual-)?(?P<stem>{_OGBENCH_STEM}){_OGBENCH_TASK}")


def ogbench_entry(name: str) -> DataSpec | None:
    """Return the entry of an OGBench name, or of the id of one of its environments; None for other names.

    `cube-single-play-singletask-task3-v0` is task 3 of the environment cube-single on the file cube-single-play-v0;
    without `-task3` it is the environment's default task. A name with `visual-` has image observations. An id such as
    `ogbench:cube-single-singletask-v0` goes with the user's own file.
    """
    row = _OGBENCH_SHORT.get(name, name)
    full = _OGBENCH_PAPER.get(row, row)
    match = _OGBENCH_NAME.fullmatch(full) or _OGBENCH_ENV.fullmatch(full)
    if match is None or (match["visual"] and match["stem"].startswith(_OGBENCH_STATES_ONLY)):
        return None
    visual, stem = match["visual"] or "", match["stem"]
    kind = match.groupdict().get("kind")
    if kind is not None and (kind in ("play", "noisy")) == (stem in _OGBENCH_MAZES):
        return None
    file = f"{visual}{stem}-{kind}-v0.npz" if kind else None
    obs_dim, action_dim = OGBENCH_SIZES[stem]
    return DataSpec(
        name,
        "ogbench" if file else "file",
        url=f"{OGBENCH_BASE}/{file}" if file else None,
        filename=file,
        obs_dim=None if visual else obs_dim,
        obs_shape=OGBENCH_FRAME if visual else None,
        action_dim=action_dim,
        eval_env=EvalEnv(f"ogbench:{visual}{stem}-singletask{match['task'] or ''}-v0"),
        ref_random=0.0,
        ref_expert=1.0,
        task="ogbench",
        paper_row=next((row for row, dataset in _OGBENCH_PAPER.items() if dataset == full), None),
        eval_episodes=OGBENCH_EPISODES,
        score="success",
    )


def ogbench_task(spec: DataSpec) -> tuple[str, int] | None:
    """Return the environment's stem ("cube-single") and its task, 0 for the default; None for other entries."""
    match = _OGBENCH_ENV.fullmatch(spec.eval_env.id) if spec.eval_env else None
    return (match["stem"], int((match["task"] or "-task0")[-1])) if match else None


def ogbench_names() -> list[str]:
    """List the OGBench rows of the paper, and every task of the same data."""
    tasks = ("", *(f"-task{number}" for number in range(1, 6)))
    stems = [f"{visual}cube-{word}" for visual in ("", "visual-") for word in ("single", "double")]
    return list(
        dict.fromkeys([*_OGBENCH_PAPER, *(f"{stem}-play-singletask{task}-v0" for stem in stems for task in tasks)])
    )


# Environments that `--env` may name for the user's own file.
OWN_DATA_ENVS = (
    *("HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5"),
    *("Ant-v5", "Swimmer-v5", "Reacher-v5"),
)
POINT_MAZES = tuple(f"PointMaze_{maze}-v3" for maze in ("Open", "UMaze", "Medium", "Large"))
_BODY = re.compile(rf"({'|'.join(BODIES)})-v5")  # the version whose sizes BODIES holds


def _own_data_entry(name: str) -> DataSpec | None:
    """Return the entry of a Gymnasium id, which scores a policy trained on the user's own file."""
    if name in OWN_DATA_ENVS or _BODY.fullmatch(name):
        return scored_on(name, "file", name)
    if name in POINT_MAZES:
        env = EvalEnv("gtp_fast.evaluation.mazes:gtp_fast/PointMaze-v0", (("env_id", name),))
        sizes = {"obs_dim": 6, "action_dim": 2, "ref_random": 0.0, "ref_expert": 1.0}
        return DataSpec(name, "file", eval_env=env, task="pointmaze", eval_episodes=100, **sizes)
    if WITH_MODULE.fullmatch(name) or name in gym_ids.ids():
        return DataSpec(name, "file", eval_env=EvalEnv(name))
    return None


_NAMED: dict[str, DataSpec] = {**_embedded(), **d4rl_entries()}
