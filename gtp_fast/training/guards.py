"""Divergence: from the counters on the device to an error that says what went wrong, where, and what to do."""

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

    Args: first_bad_SQ holds, a member and a metric each, the step of the first bad value, -1 for never.
    Raises: DivergedError naming the earliest one; failure.json in the run directory says the same.
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
    """Stop the run when a tensor of the state is not finite though every metric was.

    Args: tensors with a leading axis of members, or of several rows for each member in turn; those without any axis
    and integers are counters and pass.
    Raises: DivergedError naming the first one; failure.json in the run directory says the same.
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
    with suppress(OSError):  # a full disk must not hide why the run stopped
        publish_json(run_path / "failure.json", failure)
    resume = "no checkpoint was written before" if last_good is None else f"the last good checkpoint is {last_good}"
    raise DivergedError(f"{name} of seed {seed} was not finite at step {step:,}; {resume}; {ADVICE}")
