"""A policy from the files of a run: which checkpoint, which member, on which device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gtp_fast import algorithms
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.policy.policy import Policy, member_of
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir


def load_policy(
    path: Path | str,
    seed: int | None = None,
    best: bool = False,
    device: str = "auto",
    sampling_steps: int | None = None,
    candidates: int | None = None,
    select: str | None = None,
    precision: str = "tf32",
) -> Policy:
    """Load a policy from a run directory (its newest valid checkpoint, or its best) or from a checkpoint directory.

    Args: seed picks one member of a run of several; without it all are loaded, and a run of one member acts at once.
    sampling_steps, candidates, select override what the run was trained with. precision is that of products on a GPU.
    Raises: CheckpointError when there is no usable checkpoint; UsageError for a seed that the run has not.
    """
    policy_tensors, meta = checkpoint.load_policy(_checkpoint_path(Path(path), best))
    config = PolicyConfig.from_json(meta.get("policy", {}))
    changes = {"sampling_steps": sampling_steps, "candidates": candidates, "select": select}
    _check_steps(config, sampling_steps)
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if candidates is not None and select is None:
        config = replace(config, select=("none" if candidates == 1 else "softmax"))
    if seed is not None:
        config, policy_tensors = member_of(config, policy_tensors, seed)
    return Policy(config, policy_tensors, _device(device), precision)


def _check_steps(config: PolicyConfig, sampling_steps: int | None) -> None:
    if sampling_steps not in (None, config.sampling_steps) and not algorithms.of(config.algo).STEPS_ARE_FREE:
        raise UsageError(
            f"a policy of --algo {config.algo} acts in the {config.sampling_steps} steps that it was trained with, not "
            f"in --sampling-steps {sampling_steps}; train another one"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device={name!r} is no device that torch knows; pass 'auto', 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={name!r}: torch {torch.__version__} sees no NVIDIA GPU; pass 'cpu' or 'auto'")
    return device


def _checkpoint_path(path: Path, best: bool) -> Path:
    if (path / checkpoint.MANIFEST).is_file():
        return path
    run = RunDir(path)
    if not run.checkpoints.is_dir():
        raise CheckpointError(f"{path} is neither a run directory nor a checkpoint; train one with gtp-fast train")
    if best:
        return run.checkpoints / checkpoint.BEST
    newest, _ = checkpoint.load_newest(run)
    if newest is None:
        raise CheckpointError(f"{path} has no checkpoint yet; wait for the first, or train longer")
    return newest.path
