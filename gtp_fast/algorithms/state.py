"""TrainState: every tensor that a train step may write, at a fixed address; saved, hashed and loaded in place.

Legend: S members (seeds), Pa and Pc floats in a row of the actor's and the critic's buffer, Q metrics.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from gtp_fast.errors import CheckpointError

# The names of a network's tensors in a checkpoint: format 1 has the first version's.
SAVED_AS = {"param": "param", "exp_avg": "first", "exp_avg_sq": "second", "ema": "slow"}


@dataclass(frozen=True)
class Net:
    """One trained network: parameters, Adam's moments and the EMA copy (the critic's target), each float32 (M, P)."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor

    @classmethod
    def fresh(cls, flat_MP: Tensor) -> Net:
        """Start from parameters: moments are zero, the EMA copy is equal."""
        return cls(flat_MP, torch.zeros_like(flat_MP), torch.zeros_like(flat_MP), flat_MP.clone())


@dataclass(frozen=True)
class TrainState:
    """The whole state of a run. BC runs have no critic; only algorithms that learn V(o) have a value network.

    step: int64 (), train steps done. metric_sums_SQ: float32 sums since the last log. first_bad_SQ: int64, the step at
    which a metric was first not finite, -1 for never.
    """

    actor: Net
    critic: Net | None
    step: Tensor
    metric_sums_SQ: Tensor
    first_bad_SQ: Tensor
    value: Net | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return every persistent tensor by name; the tensors are the state itself, not copies."""
        nets = {"actor": self.actor, "critic": self.critic, "value": self.value}
        named = {f"{k}.{name}": getattr(net, part) for k, net in nets.items() if net for part, name in SAVED_AS.items()}
        return named | {"step": self.step, "metric_sums": self.metric_sums_SQ, "first_bad": self.first_bad_SQ}

    def load_(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved tensors into the state; addresses stay.

        Raises: CheckpointError when a name, shape or type differs; then nothing has been changed.
        """
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise CheckpointError(
                f"the checkpoint holds {sorted(tensors)} but this run needs {sorted(own)}; "
                "resume with the flags of the saved run, or pass --resume never"
            )
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
                raise CheckpointError(
                    f"{name} in the checkpoint is {tuple(tensor.shape)} {tensor.dtype}, expected "
                    f"{tuple(own[name].shape)} {own[name].dtype}; resume with the flags of the saved run"
                )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def digest(self) -> str:
        """Return the SHA-256 of all names and bytes, to compare states bit for bit."""
        sha = hashlib.sha256()
        for name, tensor in self.tensors().items():
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()
