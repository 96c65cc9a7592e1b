"""What a run came to: its evaluations, read back from their files, and the `Result` that `train` returns."""

from __future__ import annotations

import json
import operator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.errors import GtpError
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Result


@dataclass(frozen=True)
class EvalResult:
    """What a policy scored: returns and lengths (S, E), scores (S, E) or None where no reference is known.

    `diverged_SE` marks episodes that ended because an observation or reward was not finite, after as many steps as
    `lengths_SE` says; they count with their return up to there. `success_SE` marks those of which a step reported
    success; it is None where the environment reports none.
    """

    step: int
    returns_SE: np.ndarray
    lengths_SE: np.ndarray
    scores_SE: np.ndarray | None
    diverged_SE: np.ndarray
    success_SE: np.ndarray | None
    env_id: str
    seeds: tuple[int, ...]
    sampling_steps: int
    candidates: int
    select: str
    seconds: float = field(compare=False)

    @property
    def figures(self) -> list[float]:
        """One figure a member, to rank by: the mean score, or the mean return where there is no reference."""
        return np.asarray(self.returns_SE if self.scores_SE is None else self.scores_SE).mean(axis=1).tolist()

    @property
    def notes(self) -> list[str]:
        """What a user should know of these figures: a sentence for each episode that diverged."""
        return [
            f"{self.env_id}, seed {self.seeds[member]}, episode {episode}: an observation or reward was not finite "
            f"after {self.lengths_SE[member, episode]} steps; the episode counts with its return up to there"
            for member, episode in np.argwhere(self.diverged_SE)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; arrays as nested lists."""
        values = asdict(self)
        for name in ("returns_SE", "lengths_SE", "scores_SE", "diverged_SE", "success_SE"):
            array = values.pop(name)
            values[name[:-3]] = None if array is None else array.tolist()
        return values | {"seeds": list(self.seeds), "episodes": int(self.returns_SE.shape[1])}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalResult:
        """Read `to_json`'s values. Raises: ValueError, KeyError or TypeError for what is none of them."""
        arrays = ("returns", "lengths", "scores", "diverged", "success", "seeds", "episodes")
        values = {"diverged": None, "success": None} | values  # older files lack them
        known = {k: v for k, v in values.items() if k not in arrays}
        known["step"] = operator.index(values["step"])
        shape, seeds = np.shape(values["returns"]), tuple(map(operator.index, values["seeds"]))
        if len(shape) != 2 or shape[0] != len(seeds) or not shape[1]:
            raise ValueError(f"returns have shape {shape}, expected one row of episodes for each of {len(seeds)} seeds")

        def read(name: str, kind: type) -> np.ndarray | None:
            return None if values[name] is None else np.array(values[name], dtype=kind).reshape(shape)

        diverged = read("diverged", bool)
        return cls(
            returns_SE=np.array(values["returns"], dtype=np.float64),
            lengths_SE=np.array(values["lengths"], dtype=np.int64).reshape(shape),
            scores_SE=read("scores", float),
            diverged_SE=np.zeros(shape, bool) if diverged is None else diverged,
            success_SE=read("success", bool),
            seeds=seeds,
            **known,
        )


def of_run(cfg: TrainConfig, source: str, run: RunDir, seconds: float, steps_done: int) -> Result:
    """Gather what `train --json` prints of a run that has ended.

    Args: source of the data; seconds and steps_done of this part of the run, for its speed.
    """
    evaluations = read_evaluations(run)
    scores = [r for r in evaluations if r.scores_SE is not None]
    best = [max(column) for column in zip(*(r.figures for r in scores), strict=True)] if scores else None
    return Result(
        run_dir=str(run.path),
        env=cfg.env,
        dataset=source,
        algo=cfg.algo,
        bc=cfg.bc,
        preset=cfg.preset,
        seeds=member_seeds(cfg),
        steps=cfg.steps,
        steps_per_second=steps_done / seconds if seconds else 0.0,
        seconds=seconds,
        device=cfg.device,
        backend=cfg.backend,
        graph=cfg.graph,
        precision=cfg.precision,
        sampling_steps=cfg.sampling_steps,
        candidates=cfg.candidates,
        select=cfg.select,
        score_last=scores[-1].figures if scores else None,
        score_best=best,
        return_last=evaluations[-1].returns_SE.mean(axis=1).tolist() if evaluations else None,
        checkpoint=str(run.checkpoint(cfg.steps)),
    )


def read_evaluations(run: RunDir) -> list[EvalResult]:
    """Return the evaluations of a run in the order of their steps. Raises: GtpError naming a file that is none."""
    results = []
    for file in sorted(run.evaluations.glob("step-*.json")):
        try:
            results.append(EvalResult.from_json(json.loads(file.read_text())))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise GtpError(f"{file} is not an evaluation ({error!r}); remove it and evaluate again") from None
    return results
