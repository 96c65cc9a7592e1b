"""From the run directory of a trial to the figures of its row; what is measured is kept in the run's folder.

For Fig. 7: the mass of each mode and off the modes, and the cost of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_fast.data import embedded
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.evaluate import EvalConfig, eval_run
from gtp_fast.evaluation.failures import RolloutError
from gtp_fast.experiments.figures import GOAL_SAMPLES
from gtp_fast.experiments.latency import interleaved, spread
from gtp_fast.experiments.report import claim, interquartile_mean, stratified_interval
from gtp_fast.files import own_folder, publish_json, read_json
from gtp_fast.policy.policy import Policy, load_policy
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.records import EvalResult, find_policy, read_run, read_speeds


def figures(path: Path, acting: Mapping[str, Any], allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the last and the best figures of a finished run; where it does not act as trained, the last alone.

    Where the evaluation of its last policy failed, they are the reason, as `status`.

    Args: acting holds sampling_steps, candidates and select where they are not the run's; allowed, modules that the
    run's environment may import.
    """
    run = read_run(path)
    s = run.settings
    found: dict[str, Any] = {
        "steps": s["steps"],
        "seeds": [s["seed"] + i for i in range(s["seeds"])],
        "episodes": s["eval_episodes"],
        "eta": s["eta"],
        "acting": {name: acting.get(name, s[name]) for name in ("sampling_steps", "candidates", "select")},
        "kind": "return" if len(run.figures) and not run.scored else "score",
        **speed(path, s["steps"]),
    }
    if not any(acting[name] != s[name] for name in acting):
        if not len(run.figures) or max(run.absent, default=0) > run.eval_steps[-1]:
            why = run.absent[max(run.absent)] if run.absent else "it was not evaluated"
            return found | {"last": None, "best": None, "status": f"no score: {why}"}
        best = claim(run.figures.max(axis=0)) if len(run.figures) > 1 else None
        return found | {"last": claim(run.figures[-1]), "best": best}
    try:
        asked = EvalConfig(s["eval_episodes"], **found["acting"], env_seed=s["seed"], allow_import=allowed)
        result = evaluated(path, asked)
    except RolloutError as error:
        return found | {"last": None, "best": None, "status": f"no score: {error}"}
    return found | {"last": claim(np.array(result.figures)), "best": None}


def evaluated(path: Path, asked: EvalConfig) -> EvalResult:
    """Return the evaluation of a run's last policy on the episodes of training's evaluations; it is made once."""
    step = checkpoint.steps(RunDir(path))[-1]
    acting = f"k{asked.sampling_steps}-c{asked.candidates}-{asked.select}-e{asked.episodes}"
    file = _measured(path) / f"step-{step:08d}-{acting}.json"
    if not file.exists():
        _keep(file, eval_run(path, asked).result.to_json())
    try:
        return EvalResult.from_json(read_json(file))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(f"{file} is not an evaluation ({error!r}); remove it, and it is made again") from None


def _measured(path: Path) -> Path:
    return own_folder(path / "acting")


def _keep(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    publish_json(file, values)


def speed(path: Path, steps: int) -> dict[str, float | None]:
    """Return the milliseconds of a train step of all seeds together, and the hours of all steps at that speed.

    It is the median of the log intervals, so that a pause, or compiling in the first one, does not count.
    """
    speeds = read_speeds(RunDir(path))
    if not speeds:
        return {"ms_per_step": None, "hours": None}
    each = 1.0 / float(np.median(speeds))
    return {"ms_per_step": each * 1e3, "hours": each * steps / 3600}


def over_tasks(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return one method's figures over several tasks: mean, and IQM with an interval stratified over the tasks.

    The standard deviation is over seeds, of each seed's average over tasks. None where a task has no figures.
    """
    each = [np.array(row["last"]["each"]) for row in rows if row.get("last")]
    if len(each) < len(rows) or len({len(one) for one in each}) != 1:
        return None
    average = np.mean(each, axis=0)
    return {
        "method": rows[0]["method"],
        "tasks": len(rows),
        "mean": float(average.mean()),
        "std": float(average.std()),
        "iqm": interquartile_mean(np.concatenate(each)),
        "iqm_95": stratified_interval(each),
    }


SECONDS = 0.3  # of timing each sampler


def cloud(policy: Policy) -> np.ndarray:
    """Return a policy's actions at the origin, (S, GOAL_SAMPLES, 2); they are the same each time."""
    return policy.reset_noise().act_members(np.zeros((policy.members, GOAL_SAMPLES, 2), np.float32))


def masses(actions_SB2: np.ndarray) -> dict[str, Any]:
    """Return the mass of each mode and off the modes, as means over members, and the latter of each member."""
    found = [embedded.mode_masses(actions) for actions in actions_SB2]
    return {
        "masses": np.mean([mass for mass, _ in found], axis=0).tolist(),
        "off": float(np.mean([off for _, off in found])),
        "off_each": [off for _, off in found],
    }


def samplers(places: list[tuple[Path, int | None]]) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Return masses and costs of each (run, K or None for its own), and a cloud (N, 2) of its first member.

    Masses and costs are measured once and kept in the run's folder. Costs are network evaluations and the median
    microseconds of one action for one observation on the CPU: by the fastest way of this version, and by the
    algorithm's formulas in torch, which are comparable between algorithms.
    """
    saved = [find_policy(path) for path, _ in places]
    policies = [
        load_policy(one, sampling_steps=k, candidates=1, device="cpu")
        for one, (_, k) in zip(saved, places, strict=True)
    ]
    files = [
        _measured(path) / f"goals-{one.path.name}-k{policy.config.sampling_steps}.json"
        for (path, _), one, policy in zip(places, saved, policies, strict=True)
    ]
    clouds = [cloud(policy) for policy in policies]
    if not all(file.exists() for file in files):
        times = _times(policies)
        for i, (file, policy) in enumerate(zip(files, policies, strict=True)):
            k = policy.config.sampling_steps
            cost = {"sampling_steps": k, "network_evaluations": k, "us": times[i, "own"], "us_torch": times[i, "torch"]}
            _keep(file, masses(clouds[i]) | cost)
    return [_kept(file) for file in files], [actions[0] for actions in clouds]


def _kept(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{file} holds no measurement ({error}); remove it, and it is made again") from None


def _times(policies: list[Policy]) -> dict[tuple[int, str], dict[str, Any]]:
    """Time the first member of each policy, in turn: a slow moment of the machine slows all of them alike."""
    origin, calls = np.zeros((1, 2), np.float32), {}
    for i, policy in enumerate(policies):
        own = policy.member(policy.config.seeds[0])
        for way, acting in (("own", own), ("torch", own.reference())):
            calls[i, way] = lambda acting=acting: acting.act(origin)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a batch of one: more threads only wait for each other
    try:
        return {key: spread(times) for key, times in interleaved(calls, SECONDS).items()}
    finally:
        torch.set_num_threads(threads)
