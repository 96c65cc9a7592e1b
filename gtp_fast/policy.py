"""A trained policy: observations in, actions in [-1, 1] out, without autograd and without loops over candidates.

Legend: S members (seeds of one run), B observations, C candidates, D observation, A action.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtp_fast import checkpoint, rng
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.networks import actor_layout, critic_layout, q_values, views
from gtp_fast.rundir import RunDir
from gtp_fast.trajectory import sample_actions, sample_path, sampling_grid


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy needs to know beside its parameters; saved with every checkpoint."""

    obs_dim: int
    action_dim: int
    hidden: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    rho: float
    sampling_steps: int
    candidates: int
    select: str
    seeds: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PolicyConfig:
        """Read `to_json`'s values; raises CheckpointError when one is missing or of another kind."""
        try:
            known: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
            known["seeds"] = tuple(int(seed) for seed in known["seeds"])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's policy description is incomplete ({error!r})") from None


class Policy:
    """The EMA actors of a run's members, with the target critics where candidates are to be judged.

    Noise comes from the caller, or from a counter-based stream of (seed, number of the call): a policy that is loaded
    anew draws the same actions again.
    """

    def __init__(self, config: PolicyConfig, tensors: dict[str, Tensor], device: torch.device | str = "cpu"):
        """Take a policy's description and its flat parameters {"actor": (S, Pa), "critic": (2 S, Pc)}.

        Raises: UsageError where candidates cannot be judged; CheckpointError where shapes do not fit.
        """
        _check(config, tensors)
        self.config, self.device, self._calls = config, torch.device(device), 0
        self._actor = views(tensors["actor"].to(device), actor_layout(config.obs_dim, config.action_dim, config.hidden))
        self._critic = None
        if config.candidates > 1:
            layout = critic_layout(config.obs_dim, config.action_dim, config.hidden)
            self._critic = views(tensors["critic"].to(device), layout)
        self._grid = sampling_grid(
            config.sampling_steps, config.sigma_min, config.sigma_max, config.rho, device=self.device
        )

    @property
    def members(self) -> int:
        """Number of members S."""
        return len(self.config.seeds)

    def act(self, obs: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Choose actions for one observation (D,) or several (B, D).

        Args: obs float; noise, float32 (B * candidates, A) standard normals, candidates of a state in a row; drawn
        when absent. Returns float32 (A,) or (B, A) in [-1, 1].
        Raises: UsageError for another shape, or for a policy of several members: load it with a seed.
        """
        if self.members != 1:
            raise UsageError(f"this policy has {self.members} members; load one with seed= (of {self.config.seeds})")
        obs = np.asarray(obs, dtype=np.float32)
        single = obs.ndim == 1
        batch = obs[None] if single else obs
        actions = self.act_members(batch[None], None if noise is None else np.asarray(noise)[None])[0]
        return actions[0] if single else actions

    @torch.inference_mode()
    def act_members(self, obs_SBD: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Choose actions (S, B, A) for observations (S, B, D) of all members at once."""
        config, members = self.config, self.members
        if obs_SBD.ndim != 3 or obs_SBD.shape[0] != members or obs_SBD.shape[2] != config.obs_dim:
            seen, expected = obs_SBD.shape[1:], f"({config.obs_dim},) or (B, {config.obs_dim})"
            raise UsageError(f"observations of shape {seen}, expected {expected}; check the environment of this policy")
        if not np.isfinite(obs_SBD).all():
            raise UsageError("an observation holds NaN or Inf; the environment diverged, or a sensor failed")
        rows = obs_SBD.shape[1] * config.candidates
        z = self._noise(rows) if noise is None else torch.as_tensor(noise, dtype=torch.float32)
        if z.shape != (members, rows, config.action_dim):
            raise UsageError(f"noise of shape {tuple(z.shape[1:])}, expected {(rows, config.action_dim)}")
        obs = torch.as_tensor(obs_SBD, dtype=torch.float32).to(self.device)
        if config.candidates > 1:
            obs = obs.repeat_interleave(config.candidates, dim=1)
        actions = sample_actions(self._actor, obs, z.to(self.device), self._grid, config.sigma_data, config.sigma_min)
        if self._critic is not None:
            actions = self._choose(self._critic, obs, actions)
        return actions.cpu().numpy()

    @torch.inference_mode()
    def paths(self, obs_SBD: np.ndarray) -> np.ndarray:
        """Return every point on the way from noise to action, unclamped, float32 (K + 1, S, B, A); one draw a row."""
        obs = torch.as_tensor(obs_SBD, dtype=torch.float32).to(self.device)
        z = self._noise(obs.shape[1]).to(self.device)
        path = sample_path(self._actor, obs, z, self._grid, self.config.sigma_data, self.config.sigma_min)
        return torch.stack(path).cpu().numpy()

    def _noise(self, rows: int) -> Tensor:
        self._calls += 1
        return rng.standard_normals(list(self.config.seeds), rng.ACT, self._calls, rows, self.config.action_dim)

    def _choose(self, critic: dict[str, Tensor], obs: Tensor, actions_SRA: Tensor) -> Tensor:
        """Pick one of each state's candidates by the target's Qmin: the best, or one drawn by softmax (SPEC 6)."""
        q_SBC = q_values(critic, obs, actions_SRA).amin(dim=1).unflatten(-1, (-1, self.config.candidates))
        if self.config.select == "softmax":
            # Gumbel's trick: the largest of Q + G is a draw from softmax(Q).
            bits = rng.standard_normals(list(self.config.seeds), rng.SELECT, self._calls, q_SBC[0].numel(), 1)
            uniform = torch.special.ndtr(bits[..., 0].double()).clamp(1e-12, 1 - 1e-12)
            q_SBC = q_SBC + (-(-uniform.log()).log()).to(q_SBC).view_as(q_SBC)
        best = q_SBC.argmax(-1)[..., None, None].expand(-1, -1, 1, actions_SRA.shape[-1])
        return actions_SRA.unflatten(1, (-1, self.config.candidates)).gather(2, best)[:, :, 0]


def _check(config: PolicyConfig, tensors: dict[str, Tensor]) -> None:
    if config.candidates > 1 and "critic" not in tensors:
        raise UsageError("a behaviour-cloning policy has no critic to choose among candidates; pass --candidates 1")
    if (config.candidates > 1) != (config.select != "none"):
        raise UsageError(
            f"--candidates {config.candidates} with --select {config.select}; several candidates need softmax or "
            "argmax, one candidate needs none"
        )
    size = actor_layout(config.obs_dim, config.action_dim, config.hidden).size
    if "actor" not in tensors or tuple(tensors["actor"].shape) != (len(config.seeds), size):
        raise CheckpointError(
            f"the policy's actor has not the shape {(len(config.seeds), size)} that its description says"
        )


def load_policy(
    path: Path | str,
    seed: int | None = None,
    best: bool = False,
    device: str = "auto",
    sampling_steps: int | None = None,
    candidates: int | None = None,
    select: str | None = None,
) -> Policy:
    """Load a policy from a run directory (its newest valid checkpoint, or its best) or from a checkpoint directory.

    Args: seed picks one member of a run of several; without it all are loaded, and a run of one member acts at once.
    sampling_steps, candidates, select override what the run was trained with.
    Raises: CheckpointError when there is no usable checkpoint; UsageError for a seed that the run has not.
    """
    policy_tensors, meta = checkpoint.load_policy(_checkpoint_path(Path(path), best))
    config = PolicyConfig.from_json(meta.get("policy", {}))
    changes = {"sampling_steps": sampling_steps, "candidates": candidates, "select": select}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if candidates is not None and select is None:
        config = replace(config, select=("none" if candidates == 1 else "softmax"))
    if seed is not None:
        config, policy_tensors = _member(config, policy_tensors, seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Policy(config, policy_tensors, device)


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


def _member(config: PolicyConfig, tensors: dict[str, Tensor], seed: int) -> tuple[PolicyConfig, dict[str, Tensor]]:
    if seed not in config.seeds:
        raise UsageError(f"the run has seeds {list(config.seeds)}, not {seed}; choose one of them")
    i = config.seeds.index(seed)
    rows = {"actor": slice(i, i + 1), "critic": slice(2 * i, 2 * i + 2)}
    return replace(config, seeds=(seed,)), {name: tensor[rows[name]] for name, tensor in tensors.items()}
