"""How a policy acts: from observations and noise to actions.

`AlgorithmSampler` runs any algorithm's formulas in torch on any device; exports and tests use it as the reference.
`CpuSampler` runs GTP's chain in NumPy. The captured launch for a GPU is in `cuda_sampler`.
Legend: S members, B observations, C candidates of each, R = B C rows, D observation, A action, H hidden, K steps.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from gtp_kernels.primitives import MISH_CLAMP
from torch import Tensor

from gtp_fast import algorithms
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.equations import scalings
from gtp_fast.algorithms.networks import HIDDEN_LAYERS, TIME_WIDTH, time_embedding
from gtp_fast.algorithms.policy_config import PolicyConfig


class Sampler(Protocol):
    """A policy's parameters on one device, ready to act."""

    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """Return one action for each observation, float32 (S, B, A) in [-1, 1].

        Args: float32; z_SRA holds standard normals, the candidates of one observation in adjacent rows. Of several
        candidates the one with the largest min(Q1, Q2) is returned. With gumbel_SR it is the largest
        min(Q1, Q2) + gumbel_SR: a draw from softmax(min(Q1, Q2)).
        """
        ...


class AlgorithmSampler:
    """Acts by the algorithm's own `path` and critic, on any device and in the precision of the parameters."""

    def __init__(self, config: PolicyConfig, actor: dict[str, Tensor], critic: dict[str, Tensor] | None):
        """Take parameters by name, (S, in, out) and (2 S, in, out), on one device."""
        self._config, self._actor, self._critic = config, actor, critic
        self._algorithm = algorithms.of(config)

    @torch.inference_mode()
    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """See `Sampler.actions`; z has `noise_columns` columns instead of A, and obs may be uint8 images."""
        like = next(iter(self._actor.values()))
        obs, z = torch.as_tensor(obs_SBD).to(like), torch.as_tensor(z_SRA).to(like)
        return self.act(obs, z, None if gumbel_SR is None else torch.as_tensor(gumbel_SR).to(like)).cpu().numpy()

    def act(self, obs_SBD: Tensor, z_SRA: Tensor, gumbel_SR: Tensor | None) -> Tensor:
        """Do the same with tensors on the policy's device, as a graph that torch can export."""
        candidates = self._config.candidates
        obs_SRD = self._encoded(self._actor, obs_SBD)
        actions = self._algorithm.path(self._actor, obs_SRD, z_SRA, self._config)[-1].clamp(-1.0, 1.0)
        if self._critic is None:
            return actions
        q_SR = self._algorithm.q_values(self._critic, self._encoded(self._critic, obs_SBD), actions).amin(dim=1)
        return _chosen(q_SR if gumbel_SR is None else q_SR + gumbel_SR, actions, candidates)

    def _encoded(self, p: dict[str, Tensor], obs_SBX: Tensor) -> Tensor:
        """Return the network's observations, one row for each candidate; images are encoded first, then repeated."""
        candidates, encoded = self._config.candidates, encode_obs(p, obs_SBX)
        return encoded.repeat_interleave(candidates, dim=1) if candidates > 1 else encoded


def _chosen(q_SR: Tensor, actions_SRA: Tensor, candidates: int) -> Tensor:
    """Return the candidate with the largest value for each observation, (S, B, A)."""
    best = q_SR.unflatten(-1, (-1, candidates)).argmax(-1)[..., None, None]
    chosen = actions_SRA.unflatten(1, (-1, candidates)).gather(2, best.expand(-1, -1, 1, actions_SRA.shape[-1]))
    return chosen[:, :, 0]


def first_layer(p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the parts of the first weight, (S, I, H): of the action, of the time embeddings, of the observation."""
    weight, action_dim = p["mlp0.w"], p["mlp3.b"].shape[-1]
    return weight.split([action_dim, 2 * TIME_WIDTH, weight.shape[1] - action_dim - 2 * TIME_WIDTH], dim=1)


def chain_factors(
    p: dict[str, Tensor], levels: Tensor, sigma_data: float, sigma_min: float, process: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what depends on a step of the chain alone, given the K + 1 noise levels and the actor's parameters.

    These are what its time embeddings add to the first layer, (S, K, H), and c_in, keep and output, (K,) each: a <-
    (s/t) a + (1 - s/t) (c_skip a + c_out F(c_in a)) has one factor for a, one for F and one in F.
    """
    times = levels.expand(p["mlp0.w"].shape[0], -1)
    e_t = time_embedding(p, "t", times[:, :-1], sigma_min)
    e_s = time_embedding(p, "s", times[:, 1:], sigma_min)
    t, ratio = levels[:-1], levels[1:] / levels[:-1]
    c_skip, c_out, c_in = scalings(t, sigma_data, process)
    times_SKH = torch.cat([e_t, e_s], dim=-1) @ first_layer(p)[1]
    return times_SKH, c_in, ratio + (1.0 - ratio) * c_skip, (1.0 - ratio) * c_out


class CpuSampler:
    """Acts for GTP in NumPy, with the parameters folded in advance. A call changes nothing here: threads may share it.

    A step of the chain is affine in the action and in the network's output. The coefficients of Phi and phi, the
    scaling of the network's input and the time embeddings depend on the step alone. They are folded into the weights
    of the first and the last layer once, in float64. NumPy's calls cost half of torch's: at one observation and K = 5
    the chain's 75 operations take 0.11 ms against torch's 0.2 ms. At 50 rows the products dominate and both are equal
    (2026-11, EPYC Zen 5).
    """

    def __init__(
        self,
        actor: dict[str, Tensor],
        critic: dict[str, Tensor] | None,
        grid: Tensor,
        sigma_data: float,
        sigma_min: float,
        process: str = "edm",
    ):
        """Take float32 parameters by name, (S, in, out) and (2 S, in, out), and the noise levels (K + 1,)."""
        p, levels = {name: tensor.double() for name, tensor in actor.items()}, grid.double()
        action_dim = p["mlp3.b"].shape[-1]
        w_action, _, w_obs = first_layer(p)
        times_SKH, c_in, keep, output = chain_factors(p, levels, sigma_data, sigma_min, process)
        times_SKH, output = times_SKH + p["mlp0.b"], output.view(-1, 1, 1, 1)
        self._keep = keep.tolist()
        self._start = float(levels[0])
        self._w_obs, self._times_KS1H = _array(w_obs), _array(times_SKH.transpose(0, 1)[:, :, None])
        self._w_first_KSAH = _array(c_in.view(-1, 1, 1, 1) * w_action)
        self._w_last_KSHA, self._b_last_KS1A = _array(output * p["mlp3.w"]), _array(output * p["mlp3.b"])
        self._hidden = [(_array(p[f"mlp{i}.w"]), _array(p[f"mlp{i}.b"])) for i in range(1, HIDDEN_LAYERS)]
        self._critic = None if critic is None else _Critic(critic, action_dim)

    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """See `Sampler.actions`."""
        members, rows, action_dim = z_SRA.shape
        batch = obs_SBD.shape[1]
        fixed_KSBH = np.matmul(obs_SBD, self._w_obs) + self._times_KS1H
        fixed_KSB1H = fixed_KSBH[:, :, :, None]
        a_SRA, step_SRA = self._start * z_SRA, np.empty_like(z_SRA)
        h_SRH = np.empty((members, rows, fixed_KSBH.shape[-1]), np.float32)
        scratch = np.empty_like(h_SRH), np.empty_like(h_SRH)
        h_SBCH = h_SRH.reshape(members, batch, rows // batch, -1)
        for k, keep in enumerate(self._keep):
            np.matmul(a_SRA, self._w_first_KSAH[k], out=h_SRH)
            np.add(h_SBCH, fixed_KSB1H[k], out=h_SBCH)
            np.matmul(_tail(h_SRH, self._hidden, *scratch), self._w_last_KSHA[k], out=step_SRA)
            np.add(step_SRA, self._b_last_KS1A[k], out=step_SRA)
            np.multiply(a_SRA, keep, out=a_SRA)
            np.add(a_SRA, step_SRA, out=a_SRA)
        np.minimum(np.maximum(a_SRA, -1.0, out=a_SRA), 1.0, out=a_SRA)
        if self._critic is None:
            return a_SRA
        q_SR = self._critic.values(obs_SBD, a_SRA)
        if gumbel_SR is not None:
            q_SR = q_SR + gumbel_SR
        best = q_SR.reshape(members * batch, -1).argmax(axis=1)
        chosen = a_SRA.reshape(members * batch, -1, action_dim)[np.arange(members * batch), best]
        return chosen.reshape(members, batch, action_dim)


class _Critic:
    """Both heads of every member; an observation's share of the first layer is computed once for all its candidates."""

    def __init__(self, p: dict[str, Tensor], action_dim: int):
        layers = [(_array(p[f"mlp{i}.w"]), _array(p[f"mlp{i}.b"])) for i in range(HIDDEN_LAYERS + 1)]
        (w_first, self._b_first), *self._hidden, (self._w_last, self._b_last) = layers
        self._w_obs, self._w_action = w_first[:, :-action_dim].copy(), w_first[:, -action_dim:].copy()

    def values(self, obs_SBD: np.ndarray, a_SRA: np.ndarray) -> np.ndarray:
        """Return min(Q1, Q2) of every row, (S, R); M = 2 S heads."""
        members, batch = obs_SBD.shape[:2]
        fixed_MBH = np.matmul(obs_SBD.repeat(2, axis=0), self._w_obs) + self._b_first
        h_MRH = np.matmul(a_SRA.repeat(2, axis=0), self._w_action)
        h_MBCH = h_MRH.reshape(2 * members, batch, -1, h_MRH.shape[-1])
        np.add(h_MBCH, fixed_MBH[:, :, None], out=h_MBCH)
        last = _tail(h_MRH, self._hidden, np.empty_like(h_MRH), np.empty_like(h_MRH))
        q_MR1 = np.matmul(last, self._w_last) + self._b_last
        return q_MR1.reshape(members, 2, -1).min(axis=1)


def _array(tensor: Tensor) -> np.ndarray:
    """Copy to a contiguous float32 array, so that later changes of the tensor do not reach the policy."""
    return np.array(tensor.detach().numpy(), np.float32, order="C")


def _tail(
    h: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]], scratch: np.ndarray, more: np.ndarray
) -> np.ndarray:
    """Run the hidden layers from the first pre-activation to the last activation; the result is in `scratch`."""
    _mish(h, scratch, more)
    for weight, bias in layers:
        np.matmul(scratch, weight, out=h)
        np.add(h, bias, out=h)
        _mish(h, scratch, more)
    return scratch


def _mish(x: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    """Write mish(x) = x n / (n + 2), n = e (e + 2), e = exp(min(x, 20)), into `out`, as `primitives.mish` does."""
    np.minimum(x, MISH_CLAMP, out=scratch)
    np.exp(scratch, out=scratch)
    np.add(scratch, 2.0, out=out)
    np.multiply(out, scratch, out=out)
    np.add(out, 2.0, out=scratch)
    np.divide(out, scratch, out=out)
    np.multiply(out, x, out=out)
