"""The best policy of each member so far, by the figures of evaluations: ckpt/best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.results import EvalResult


def replace(
    run: RunDir, best: dict[str, Any], result: EvalResult, policy: dict[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Replace the members of ckpt/best that an evaluation beats; ties keep the earlier step.

    Args: best, what stood there, {} or tensors, figures and steps of each member; it is brought up to date. policy,
    what was evaluated; meta, what a checkpoint says of its run. Raises: OSError from the file system.
    """
    tensors, figures, steps = best.get("tensors"), best.get("figures"), best.get("steps")
    if tensors is None or figures is None or steps is None:
        tensors = {name: tensor.clone() for name, tensor in policy.items()}
        figures, steps = list(result.figures), [result.step] * len(result.seeds)
    else:
        for i, figure in enumerate(result.figures):
            if (figure, -result.step) > (figures[i], -steps[i]):
                figures[i], steps[i] = figure, result.step
                for name, tensor in policy.items():
                    rows = tensor.shape[0] // len(result.seeds)
                    tensors[name][i * rows : (i + 1) * rows] = tensor[i * rows : (i + 1) * rows]
    best.update(tensors=tensors, figures=figures, steps=steps)
    checkpoint.save_best(run, tensors, {**meta, "step": max(steps), "figures": figures, "steps": steps})
