"""From observations and noise to actions: what every device does, and the form that runs on any of them.

Legend: S members, B observations, C candidates of each, R = B C rows, D observation, A action.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gtp_fast.networks import q_values
from gtp_fast.trajectory import sample_actions


class Sampler(Protocol):
    """A policy's parameters on one device, ready to act."""

    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """Return each observation's action, float32 (S, B, A) in [-1, 1].

        Args: float32; z_SRA standard normals, the candidates of an observation in a row; with several candidates the
        one with the largest min(Q1, Q2) is taken, or of min(Q1, Q2) + gumbel_SR: a draw from softmax (SPEC 6).
        """
        ...


class TorchSampler:
    """`trajectory.sample_actions` as it stands: the way on a GPU, and the twin that others are held to."""

    def __init__(
        self,
        actor: dict[str, Tensor],
        critic: dict[str, Tensor] | None,
        grid: Tensor,
        sigma_data: float,
        sigma_min: float,
    ):
        """Take parameters by name, (S, in, out) and (2 S, in, out), and the noise levels (K + 1,), on one device."""
        self._actor, self._critic, self._grid = actor, critic, grid
        self._sigma_data, self._sigma_min = sigma_data, sigma_min

    @torch.inference_mode()
    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """See `Sampler.actions`; in the precision of the parameters."""
        obs, z = self._tensor(obs_SBD), self._tensor(z_SRA)
        candidates = z.shape[1] // obs.shape[1]
        obs = obs.repeat_interleave(candidates, dim=1)
        actions = sample_actions(self._actor, obs, z, self._grid, self._sigma_data, self._sigma_min)
        if self._critic is None:
            return actions.cpu().numpy()
        q_SR = q_values(self._critic, obs, actions).amin(dim=1)
        if gumbel_SR is not None:
            q_SR = q_SR + self._tensor(gumbel_SR)
        best = q_SR.unflatten(-1, (-1, candidates)).argmax(-1)[..., None, None]
        chosen = actions.unflatten(1, (-1, candidates)).gather(2, best.expand(-1, -1, 1, actions.shape[-1]))
        return chosen[:, :, 0].cpu().numpy()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values).to(self._grid)
