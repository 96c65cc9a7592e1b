"""From the name of a data set to what is known of it.

In: a name that a person typed. Out: a `DataSpec`. No file is opened, no network used, neither torch nor gymnasium
imported. References and file sizes are published ones; no entry is taken from the metadata of a data file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtp_fast import presets
from gtp_fast.config import TrainConfig
from gtp_fast.data import d4rl_names, minari_names, ogbench_names
from gtp_fast.data.spec import DataSpec, EvalEnv, scored_on
from gtp_fast.errors import UsageError

# Environments that `--env` may name for a file of one's own.
OWN_DATA_ENVS = (
    *("HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5"),
    *("Ant-v5", "Swimmer-v5", "Reacher-v5"),
)
POINT_MAZES = tuple(f"PointMaze_{maze}-v3" for maze in ("Open", "UMaze", "Medium", "Large"))
_LINE = "{:43} {:8} {:>9} {:9} {:53} {}"
HEAD = _LINE.format("name", "source", "size", "obs/act", "environment", "what scores 0 and 100")
_OWN_MODULE = re.compile(r"[A-Za-z_][\w.]*:[\w./-]+-v\d+")


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


_NAMED: dict[str, DataSpec] = {**_embedded(), **d4rl_names.entries()}


def _own_data(name: str) -> DataSpec | None:
    """Read a Gymnasium id that scores a policy trained on a file of one's own."""
    if name in OWN_DATA_ENVS:
        return scored_on(name, "file", name)
    if name in POINT_MAZES:
        env = EvalEnv("gtp_fast.evaluation.pointmaze:gtp_fast/PointMaze-v0", (("env_id", name),))
        sizes = {"obs_dim": 6, "action_dim": 2, "ref_random": 0.0, "ref_expert": 1.0}
        return DataSpec(name, "file", eval_env=env, task="pointmaze", eval_episodes=100, **sizes)
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
    spec = _NAMED.get(name) or minari_names.entry(name) or ogbench_names.entry(name) or _own_data(name)
    if spec is not None:
        return spec
    near = difflib.get_close_matches(name, known_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"for example {', '.join(list(_NAMED)[:3])}."
    raise UsageError(f"--env: no data set is called '{name}'; {hint} `gtp-fast data list` shows every name.")


def run_settings(flags: Mapping[str, Any], file: Path | None = None) -> TrainConfig:
    """Return the settings of a run: its explicit flags, a YAML file below them, and below that the presets of its task.

    Raises: UsageError for unknown names, wrong types, values out of range, with the nearest match.
    """
    typed = presets.typed_settings(flags, file)
    return presets.merge(typed, resolve(typed["env"]).task if typed.get("env") else None)


def known_names() -> list[str]:
    """List the names that can be written out: all but the patterns, of which it holds the usual members."""
    return [*_NAMED, *minari_names.known(), *ogbench_names.known(), *OWN_DATA_ENVS, *POINT_MAZES]


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
    """Write a row of `listing` for a person: what is not known is a dash; references are those of scores 0 and 100."""
    seen = "x".join(map(str, row["obs_shape"] or ())) or row["obs_dim"] or "?"
    shapes, size = f"{seen}/{row['action_dim'] or '?'}", f"{row['megabytes']} MB" if row["megabytes"] else "-"
    ends = (row["ref_random"], row["ref_expert"])
    refs = "-" if None in ends else f"{row['score']} {' to '.join(f'{end:.6g}' for end in ends)}"
    return _LINE.format(row["name"], row["source"], size, shapes, row["eval_env"] or "-", refs)
