"""`gtp-fast eval`: from a run, or one of its checkpoints, to the scores of its policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_fast import device
from gtp_fast.config import TrainConfig, check_range
from gtp_fast.data import catalog
from gtp_fast.data.spec import with_references
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.evaluation.evaluate import evaluate_policy, record_video
from gtp_fast.policy.load import load_policy
from gtp_fast.presets import read_settings, settings_file
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.results import EvalResult

# A flag of eval, and the setting whose range it has.
_RANGES = {
    "episodes": "eval_episodes",
    "sampling_steps": "sampling_steps",
    "candidates": "candidates",
    "workers": "eval_workers",
}


@dataclass(frozen=True)
class EvalConfig:
    """What is asked of a policy; None stands for what the run was trained with."""

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


@dataclass(frozen=True)
class Evaluation:
    """A result, the checkpoint that was evaluated, the step of each member there, and what the user should know."""

    result: EvalResult
    checkpoint: Path
    steps: tuple[int, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        where = {"checkpoint": str(self.checkpoint), "best": self.checkpoint.name == checkpoint.BEST}
        return {**where, "steps": list(self.steps), **self.result.to_json()}


def eval_run(path: Path, asked: EvalConfig) -> Evaluation:
    """Roll out the policy of a run, of its last valid checkpoint unless the best is asked for, or of a checkpoint.

    Raises: UsageError for what is no run and for values out of range; CheckpointError without a usable checkpoint.
    """
    _check(asked)
    settings = read_settings(path)
    spec = catalog.resolve(settings["env"])
    cfg, _ = device.resolve(TrainConfig(env=spec.name, device=asked.device))  # pyright: ignore[reportArgumentType]
    chosen, notes = _choose(path, asked.best)
    policy = load_policy(
        chosen,
        asked.seed,
        device=cfg.device,
        sampling_steps=asked.sampling_steps,
        candidates=asked.candidates,
        select=asked.select,
    )
    steps, references = _steps(chosen, asked.seed)
    spec = with_references(spec, references)
    episodes = settings["eval_episodes"] if asked.episodes is None else asked.episodes
    result = evaluate_policy(policy, spec, episodes, asked.env_seed, max(steps), asked.workers)
    if asked.video is not None:
        try:
            record_video(policy, spec, asked.video, asked.env_seed)
        except OSError as error:
            raise UsageError(f"--video {asked.video} cannot be written ({error}); choose another place") from error
    return Evaluation(result, chosen, steps, notes)


def _check(asked: EvalConfig) -> None:
    for name, setting in _RANGES.items():
        value = getattr(asked, name)
        if value is not None:
            check_range(setting, value, "--" + name.replace("_", "-"))
    check_range("seed", asked.env_seed, "--env-seed")
    if asked.video is not None and (asked.video.is_dir() or not asked.video.parent.is_dir()):
        raise UsageError(f"--video {asked.video} cannot be written; name a file in a directory that exists")


def _choose(path: Path, best: bool) -> tuple[Path, tuple[str, ...]]:
    """Return the checkpoint to evaluate, and why newer ones were passed over."""
    file = settings_file(path)
    assert file is not None  # its settings were read
    run = RunDir(file.parent)
    if path.resolve() != run.path.resolve():
        if best:
            raise UsageError(f"--best picks the best policy of a run, and {path} is one checkpoint; name {run.path}")
        return path, ()
    if best:
        if not (run.checkpoints / checkpoint.BEST).is_dir():
            raise CheckpointError(f"{path} has no best policy, for it was never evaluated; leave out --best")
        return run.checkpoints / checkpoint.BEST, ()
    newest, refused = checkpoint.load_newest(run)
    if newest is None:
        raise CheckpointError(f"{path} has no checkpoint yet; wait for the first, or train longer")
    return newest.path, tuple(f"passed over a damaged checkpoint: {reason}" for reason in refused)


def _steps(chosen: Path, seed: int | None) -> tuple[tuple[int, ...], Sequence[float] | None]:
    """Return the step of each member that is evaluated (members of ckpt/best were best at different steps), and the
    references that the data set had of its own.
    """
    _, meta = checkpoint.load_policy(chosen)
    seeds = meta["policy"]["seeds"]
    steps = dict(zip(seeds, meta.get("steps", [meta["step"]] * len(seeds)), strict=True))
    return (tuple(steps.values()) if seed is None else (steps[seed],)), meta.get("references")
