"""Divergence: from the first step of a non-finite value to failure.json and an error with the remedy.

`check_finite` takes what the device recorded for each metric, `check_tensors` the tensors of the train state.
Legend: S members (seeds), Q metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from gtp_fast.errors import DivergedError
from gtp_fast.files import publish_json

ADVICE = "lower --lr or --eta, raise the clipping (--grad-norm), or keep --weight-cap above 0"


def check_finite(
    first_bad_SQ: list[list[int]], names: tuple[str, ...], seeds: list[int], run_path: Path, last_good: Path | None
) -> None:
    """Stop the run when a metric was not finite.

    Args: first_bad_SQ, for each member and metric the step of the first non-finite value, -1 for none.
    Raises: DivergedError naming the earliest value; failure.json in the run directory holds the same facts.
    """
    found = [
        (step, order, name, seed)
        for seed, row in zip(seeds, first_bad_SQ, strict=True)
        for order, (name, step) in enumerate(zip(names, row, strict=True))
        if step >= 0
    ]
    if found:
        step, _, name, seed = min(found)
        _stop(step, name, seed, run_path, last_good)


def check_tensors(
    tensors: Mapping[str, Tensor], step: int, seeds: list[int], run_path: Path, last_good: Path | None
) -> None:
    """Stop the run when a tensor of the train state is not finite although every metric was.

    Args: tensors, whose first axis has one or several rows for each member. Integers and scalars are counters and are
    not checked.
    Raises: DivergedError naming the first tensor; failure.json in the run directory holds the same facts.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim and not torch.isfinite(tensor).all():
            row = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).nonzero()[0])
            _stop(step, name, seeds[row * len(seeds) // tensor.shape[0]], run_path, last_good)


def _stop(step: int, name: str, seed: int, run_path: Path, last_good: Path | None) -> NoReturn:
    failure = {
        "step": step,
        "quantity": name,
        "seed": seed,
        "last_good_checkpoint": None if last_good is None else str(last_good),
        "advice": ADVICE,
    }
    with suppress(OSError):  # a full disk must not hide the divergence
        publish_json(run_path / "failure.json", failure)
    resume = (
        "no checkpoint was written before that" if last_good is None else f"the last good checkpoint is {last_good}"
    )
    raise DivergedError(f"{name} of seed {seed} was not finite at step {step:,}; {resume}; {ADVICE}")
