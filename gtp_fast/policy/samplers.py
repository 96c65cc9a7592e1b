"""From observations and noise to actions: what every device does, and the form that runs on any of them.

Legend: S members, B observations, C candidates of each, R = B C rows, D observation, A action.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gtp_fast import algorithms
from gtp_fast.algorithms.encoder import see
from gtp_fast.algorithms.equations import sample_actions
from gtp_fast.algorithms.networks import q_values
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.errors import UsageError


class Sampler(Protocol):
    """A policy's parameters on one device, ready to act."""

    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """Return each observation's action, float32 (S, B, A) in [-1, 1].

        Args: float32; z_SRA standard normals, the candidates of an observation in a row; with several candidates the
        one with the largest min(Q1, Q2) is taken, or of min(Q1, Q2) + gumbel_SR: a draw from softmax (SPEC 6).
        """
        ...


class AlgorithmSampler:
    """An algorithm's own `path` and `judge` as they stand, on any device."""

    def __init__(self, config: PolicyConfig, actor: dict[str, Tensor], critic: dict[str, Tensor] | None):
        """Take parameters by name, (S, in, out) and (2 S, in, out), on one device."""
        self._config, self._actor, self._critic = config, actor, critic
        self._algorithm = algorithms.of(config.algo)

    @torch.inference_mode()
    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """See `Sampler.actions`; z has the algorithm's `noise_columns` in place of A, and obs may be uint8 frames."""
        like = next(iter(self._actor.values()))
        obs, z = torch.as_tensor(obs_SBD).to(like), torch.as_tensor(z_SRA).to(like)
        return self.act(obs, z, None if gumbel_SR is None else torch.as_tensor(gumbel_SR).to(like)).cpu().numpy()

    def act(self, obs_SBD: Tensor, z_SRA: Tensor, gumbel_SR: Tensor | None) -> Tensor:
        """Do what `actions` does, with tensors on the policy's device; the graph of it can be exported."""
        candidates = self._config.candidates
        obs_SRD = self._seen(self._actor, obs_SBD)
        actions = self._algorithm.path(self._actor, obs_SRD, z_SRA, self._config)[-1].clamp(-1.0, 1.0)
        if self._critic is None:
            return actions
        q_SR = self._algorithm.judge(self._critic, self._seen(self._critic, obs_SBD), actions).amin(dim=1)
        return _chosen(q_SR if gumbel_SR is None else q_SR + gumbel_SR, actions, candidates)

    def _seen(self, p: dict[str, Tensor], obs_SBX: Tensor) -> Tensor:
        """Return what a network is given, once for each candidate; frames are encoded before they are repeated."""
        candidates, seen = self._config.candidates, see(p, obs_SBX)
        return seen.repeat_interleave(candidates, dim=1) if candidates > 1 else seen


def _chosen(q_SR: Tensor, actions_SRA: Tensor, candidates: int) -> Tensor:
    """Return the action of the largest value of each observation, (S, B, A)."""
    best = q_SR.unflatten(-1, (-1, candidates)).argmax(-1)[..., None, None]
    chosen = actions_SRA.unflatten(1, (-1, candidates)).gather(2, best.expand(-1, -1, 1, actions_SRA.shape[-1]))
    return chosen[:, :, 0]


class TorchSampler:
    """`trajectory.sample_actions` as it stands: the way on a GPU, and the twin that others are held to."""

    def __init__(
        self,
        actor: dict[str, Tensor],
        critic: dict[str, Tensor] | None,
        grid: Tensor,
        sigma_data: float,
        sigma_min: float,
        process: str = "edm",
    ):
        """Take parameters by name, (S, in, out) and (2 S, in, out), and the noise levels (K + 1,), on one device."""
        self._actor, self._critic, self._grid = actor, critic, grid
        self._acting = sigma_data, sigma_min, process

    @torch.inference_mode()
    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """See `Sampler.actions`; in the precision of the parameters."""
        obs, z = self._tensor(obs_SBD), self._tensor(z_SRA)
        candidates = z.shape[1] // obs.shape[1]
        obs = obs.repeat_interleave(candidates, dim=1)
        actions = sample_actions(self._actor, obs, z, self._grid, *self._acting)
        if self._critic is None:
            return actions.cpu().numpy()
        q_SR = q_values(self._critic, obs, actions).amin(dim=1)
        if gumbel_SR is not None:
            q_SR = q_SR + self._tensor(gumbel_SR)
        return _chosen(q_SR, actions, candidates).cpu().numpy()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values).to(self._grid)


def observations(values: Any, config: PolicyConfig) -> np.ndarray:
    """Return observations as a policy takes them, float32 or uint8; raises UsageError for what they cannot be."""
    if config.frame_shape is None:
        return numbers(values, "an observation")
    if (found := np.asarray(values)).dtype != np.uint8:
        raise UsageError(
            f"pictures of {found.dtype}, expected uint8 of 0 to 255; pass them as the environment makes them"
        )
    return found


def numbers(values: Any, what: str) -> np.ndarray:
    """Return values as a float32 array; raises UsageError for what is no array of finite numbers."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} cannot be read as numbers ({error}); pass a NumPy array") from None
    if found.dtype.kind not in "fiub":
        raise UsageError(f"{what} cannot be read as numbers (it holds {found.dtype}); pass a float32 NumPy array")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise UsageError(f"{what} holds NaN or Inf; the environment diverged, or a sensor failed")
    return found
