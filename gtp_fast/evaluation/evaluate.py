"""Score policies in Gymnasium environments: every member plays the same number of episodes, on several cores.

`eval_run` is `gtp-fast eval`: from a run, or one of its checkpoints, to the scores of its policy.
Legend: S members (seeds), E episodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast import device
from gtp_fast.config import TrainConfig, check_range
from gtp_fast.data import catalog
from gtp_fast.data.spec import DataSpec, EvalEnv, normalised_score, with_references
from gtp_fast.data.trust import refuse_imports
from gtp_fast.device import cores
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.environments import check_environment, limit_note, make_env, with_limit
from gtp_fast.evaluation.failures import RolloutError, append, telling
from gtp_fast.evaluation.rollout import GROUP, Rollouts, episode_seed, one_thread, play, spread
from gtp_fast.evaluation.silence import ended_when_silent
from gtp_fast.evaluation.video import record_video
from gtp_fast.policy.policy import Policy, load_policy
from gtp_fast.runs import checkpoint
from gtp_fast.runs.records import EvalResult, find_policy, read_settings, run_of


def evaluate_policy(
    policy: Policy, spec: DataSpec, episodes: int, seed: int = 0, step: int = 0, workers: int = 1
) -> EvalResult:
    """Roll out every member for `episodes` episodes, with `workers` processes beside this one; 0: one a core.

    Each episode has a seed of its own, the same for every member, and is stepped until it ends and never after: no
    step is lost or counted twice. The policy acts as if newly loaded, a group of episodes by one call: an evaluation
    repeats, to the bit for any number of workers. On a GPU it acts for all episodes by one call, in this process.
    Raises: UsageError when the entry names no environment, or one that is not finite at its reset or returns what its
    spaces do not allow; DataError when the observation's size is another; RolloutError for what an environment raises.
    """
    started = time.perf_counter()
    config = policy.config
    limit = check_environment(spec, config.obs_shape, config.action_dim, config.frame_stack, config.acts.bounds)
    assert spec.eval_env is not None
    with one_thread(), telling(spec.eval_env.id):
        if policy.device.type == "cpu":
            played = _play_on_cores(policy, spec.eval_env, (episodes, seed, limit), workers or cores())
        else:
            played = _play_at_once(policy, spec.eval_env, (episodes, seed, limit))
    told = any(x is not None for x in played.success)
    columns = played._replace(success=[bool(x) for x in played.success])
    returns, lengths, diverged, success, cut = (np.array(x).reshape(policy.members, episodes) for x in columns)
    success = success if told else None
    return EvalResult(
        step=step,
        returns_SE=returns,
        lengths_SE=lengths,
        scores_SE=_scores(spec, returns, success),
        diverged_SE=diverged,
        success_SE=success,
        env_id=spec.eval_env.id,
        seeds=config.seeds,
        sampling_steps=config.sampling_steps,
        candidates=config.candidates,
        select=config.select,
        seconds=time.perf_counter() - started,
        cut_SE=cut,
        limit=limit,
    )


def _play_on_cores(policy: Policy, env: EvalEnv, asked: tuple[int, int, int | None], workers: int) -> Rollouts:
    """Play every member's episodes in groups, each in one process, and return them member by member.

    Args: asked, the number of episodes, the seed, and the limit of an episode's steps.
    """
    episodes, seed, limit = asked
    members = [policy.member(of) for of in policy.config.seeds]
    groups = [(member, first) for member in members for first in range(0, episodes, GROUP)]
    with ExitStack() as stack:
        stacked, acts = policy.config.frame_stack, policy.config.acts
        envs = [stack.enter_context(closing(make_env(env, stacked, acts))) for _ in range(min(GROUP, episodes))]

        def task(index: int) -> Rollouts:
            member, first = groups[index]
            seeds = [episode_seed(seed, e) for e in range(first, min(first + GROUP, episodes))]
            with telling(env.id):
                return play(member.reset_noise(first), envs[: len(seeds)], seeds, GROUP, env.id, limit)

        answers = spread(task, len(groups), workers)
        return Rollouts(*(list(chain.from_iterable(columns)) for columns in zip(*answers, strict=True)))


def _play_at_once(policy: Policy, env: EvalEnv, asked: tuple[int, int, int | None]) -> Rollouts:
    """Play all episodes of all members here, by one call a step: what a captured launch is made for."""
    episodes, seed, limit = asked
    with ExitStack() as stack:
        stacked, acts = policy.config.frame_stack, policy.config.acts
        envs = [stack.enter_context(closing(make_env(env, stacked, acts))) for _ in range(policy.members * episodes)]
        seeds = [episode_seed(seed, e) for e in range(episodes)] * policy.members
        return play(policy.reset_noise(), envs, seeds, episodes, env.id, limit)


def _scores(spec: DataSpec, returns_SE: np.ndarray, success_SE: np.ndarray | None) -> np.ndarray | None:
    """Return scores (S, E): normalised returns, or 100 for a success where that is what counts; None if unknown."""
    if spec.score == "success":
        return None if success_SE is None else 100.0 * success_SE
    return normalised_score(spec, returns_SE)


# A flag of eval, and the setting whose range it has.
_RANGES = {
    "episodes": "eval_episodes",
    "sampling_steps": "sampling_steps",
    "candidates": "candidates",
    "workers": "eval_workers",
    "eval_max_steps": "eval_max_steps",
}


@dataclass(frozen=True)
class EvalConfig:
    """The flags of an evaluation; None stands for the run's own setting."""

    episodes: int | None = None
    sampling_steps: int | None = None
    candidates: int | None = None
    select: str | None = None
    seed: int | None = None  # one member of the run; None: all
    env_seed: int = 1
    workers: int = 0  # processes that step environments; 0: one a core
    best: bool = False
    device: str = "cpu"
    video: Path | None = None
    eval_max_steps: int | None = None
    allow_import: Sequence[str] = ()  # modules that the run's environment may import


@dataclass(frozen=True)
class Evaluation:
    """A result, the checkpoint that was evaluated, each member's step, and notes for the user."""

    result: EvalResult
    checkpoint: Path
    steps: tuple[int, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        where = {"checkpoint": str(self.checkpoint), "best": self.checkpoint.name == checkpoint.BEST}
        return {**where, "steps": list(self.steps), "notes": list(self.notes), **self.result.to_json()}


def eval_run(path: Path, asked: EvalConfig) -> Evaluation:
    """Roll out the policy of a checkpoint, or of a run: of its newest valid checkpoint, or with --best its best.

    Raises: UsageError for what is no run, for values out of range and for an environment that would import a module
    which is not allowed; CheckpointError without a usable checkpoint; RolloutError for what the environment raises,
    whose traceback is then in the run's train.log.
    """
    _check(asked)
    settings, run = read_settings(path), run_of(path)
    refuse_imports(settings["env"], settings["env_kwargs"], run.path / "config.yaml", asked.allow_import)
    spec = catalog.resolve(settings["env"], settings["env_kwargs"])
    cfg, _ = device.resolve(TrainConfig(env=spec.name, device=asked.device))  # pyright: ignore[reportArgumentType]
    if asked.best and path.resolve() != run.path.resolve():
        raise UsageError(f"--best picks the best policy of a run, and {path} is one checkpoint; name {run.path}")
    saved = find_policy(path, asked.best)
    wanted = {"sampling_steps": asked.sampling_steps, "candidates": asked.candidates, "select": asked.select}
    policy = load_policy(saved, asked.seed, device=cfg.device, **wanted)
    steps = tuple(saved.steps[seed] for seed in policy.config.seeds)
    spec = with_references(spec, saved.meta.get("references"))
    limit = settings["eval_max_steps"] if asked.eval_max_steps is None else asked.eval_max_steps
    spec = with_limit(spec, limit)
    episodes = settings["eval_episodes"] if asked.episodes is None else asked.episodes
    try:
        with ended_when_silent(spec.eval_env.id if spec.eval_env else spec.name):
            result = evaluate_policy(policy, spec, episodes, asked.env_seed, max(steps), asked.workers)
            if asked.video is not None:
                record_video(policy, spec, asked.video, asked.env_seed)
    except RolloutError as error:
        raise RolloutError(f"the evaluation failed: {error}{append(run.log, error)}") from error
    notes = (*saved.notes, *limit_note(spec.eval_env, result.limit), *result.notes)
    return Evaluation(result, saved.path, steps, notes)


def _check(asked: EvalConfig) -> None:
    for name, setting in _RANGES.items():
        value = getattr(asked, name)
        if value is not None:
            check_range(setting, value, "--" + name.replace("_", "-"))
    check_range("seed", asked.env_seed, "--env-seed")
    if asked.video is not None and (asked.video.is_dir() or not asked.video.parent.is_dir()):
        raise UsageError(f"--video {asked.video} cannot be written; name a file in a directory that exists")
