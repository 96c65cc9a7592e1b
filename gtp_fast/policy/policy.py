"""A trained policy: observations in, actions in [-1, 1] out, without autograd and without loops over candidates.

`load_policy` reads one from a run's files. `Policy` checks its inputs and draws the noise; a sampler computes the
actions (`samplers`, `cuda_sampler`).
Legend: S members (seeds of one run), B observations, C candidates, R = B C rows, D observation, A action.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtp_fast import algorithms, rng
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.equations import sampling_grid
from gtp_fast.algorithms.networks import views
from gtp_fast.algorithms.policy_config import PolicyConfig, check
from gtp_fast.data import replay, units
from gtp_fast.device import missing_for_kernels
from gtp_fast.errors import UsageError
from gtp_fast.policy.samplers import AlgorithmSampler, CpuSampler, Sampler
from gtp_fast.runs.records import SavedPolicy, find_policy

# One call's numbers take 0.33 ms, almost all of it the dispatch of Philox's operations; those of 1,024 counters, 512
# calls at batch 1, take 0.41 ms (2026-11, EPYC Zen 5, one thread). A longer block saves nothing and delays one call.
BLOCK_COUNTERS = 1_024
PRECISIONS = ("fp32", "tf32", "bf16")


class Policy:
    """The EMA actors of a run's members, and their target critics where a policy chooses among candidates.

    The caller passes noise, or the policy draws it from a counter-based stream of (seed, number of the call). A policy
    that is loaded again therefore draws the same actions.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tensors: dict[str, Tensor],
        device: torch.device | str = "cpu",
        precision: str = "tf32",
    ):
        """Take a policy's description and its flat parameters {"actor": (S, Pa), "critic": (2 S, Pc)}.

        precision ("fp32", "tf32" or "bf16") applies to the operands of matrix products on a GPU; a CPU uses fp32.
        Raises: UsageError for several candidates without a critic; CheckpointError for parameters of another shape.
        """
        self._algorithm = algorithms.of(config)
        layouts = self._algorithm.layouts(config, config.obs_shape, config.action_dim)
        check(config, tensors, layouts)
        self.config, self.device, self._calls = config, torch.device(device), 0
        self._tensors, self._precision = tensors, precision
        self._actor, self._critic = views(tensors["actor"].to(device), layouts["actor"]), None
        if config.candidates > 1:
            self._critic = views(tensors["critic"].to(device), layouts["critic"])
        self.members = len(config.seeds)  # S
        self.steps_are_free = self._algorithm.STEPS_ARE_FREE  # may be others than the run's setting
        self.noise_columns = self._algorithm.noise_columns(config)  # normals for one action; 0: deterministic
        self._sampler = self._make_sampler(tensors, precision)
        self._noise = CallNoise(config.seeds, rng.ACT, self.noise_columns)
        self._choice = CallNoise(config.seeds, rng.SELECT, 1, gumbel=True) if config.select == "softmax" else None

    def _make_sampler(self, tensors: dict[str, Tensor], precision: str) -> Sampler:
        config, device = self.config, self.device.type
        if precision not in PRECISIONS:
            raise UsageError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}; choose one of them")
        if config.algo != "gtp" or config.frame_shape:
            return self.formulas
        if device == "cpu":
            grid = sampling_grid(config.sampling_steps, config.sigma_min, config.sigma_max, config.rho)
            return CpuSampler(self._actor, self._critic, grid, config.sigma_data, config.sigma_min, config.process)
        if device == "cuda" and missing_for_kernels(config.hidden, config.sampling_steps) is None:
            from gtp_fast.policy.cuda_sampler import CudaSampler  # imports Triton, which a CPU does not need

            return CudaSampler(config, tensors, self.device, precision)
        return self.formulas

    def reset_noise(self, first: int = 0) -> Policy:
        """Return a copy that shares the parameters and restarts the noise.

        Its first observation gets the noise that observation `first` of a whole batch gets.
        """
        other, row = copy.copy(self), first * self.config.candidates
        other._calls, other._noise = 0, self._noise.from_row(row)
        other._choice = self._choice and self._choice.from_row(row)
        return other

    def member(self, seed: int) -> Policy:
        """Return one member as a policy. Raises: UsageError for a seed that no member has."""
        return Policy(*member_of(self.config, self._tensors, seed), self.device, self._precision)

    def reference(self) -> Policy:
        """Return a copy that acts by the algorithm's formulas in torch, to compare this policy with."""
        other = self.reset_noise()
        other._sampler = self.formulas
        return other

    @property
    def formulas(self) -> AlgorithmSampler:
        """The algorithm's formulas in torch, for exports and comparisons; observations must be normalised already."""
        return AlgorithmSampler(self.config, self._actor, self._critic)

    @property
    def runtime(self) -> str:
        """What computes the actions: "numpy", "fused" (one captured launch), or "torch"."""
        return {"CpuSampler": "numpy", "CudaSampler": "fused"}.get(type(self._sampler).__name__, "torch")

    def act(self, obs: np.ndarray, noise: np.ndarray | None = None, gumbel: np.ndarray | None = None) -> np.ndarray:
        """Choose actions for one observation (D,) or several (B, D); of images (H, W, C) or (B, H, W, C).

        Args: obs, float, images uint8. noise, float32 (B * candidates, N) standard normals, the candidates of one
        observation in adjacent rows; N is `noise_columns`: A, or more for algorithms whose steps add noise. gumbel,
        float32 (B * candidates,) Gumbel(0, 1) numbers, for softmax only. The policy draws both where they are absent.
        Returns float32 (A,) or (B, A) in [-1, 1].
        Raises: UsageError for another shape, for values that are not finite numbers, or for a policy of several
        members: load it with a seed.
        """
        if self.members != 1:
            raise UsageError(
                f"this policy has {self.members} members; load one of them with seed= ({self.config.seeds})"
            )
        obs, one = observations(obs, self.config), self.config.observation
        single = obs.ndim == len(one)
        if obs.ndim - len(one) not in (0, 1) or obs.shape[-len(one) :] != one or not len(obs):
            raise UsageError(
                f"observations of shape {obs.shape}, expected {one} or (B, {_sizes(one)}) with B at least 1; check the "
                "environment of this policy"
            )
        z = None if noise is None else numbers(noise, "noise")[None]
        g = None if gumbel is None else numbers(gumbel, "gumbel")[None]
        actions = self._act(obs.reshape(1, -1, *one), z, g)[0]
        return actions[0] if single else actions

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as the environment takes them: `env.step(policy.to_environment(policy.act(obs)))`.

        Args: actions (..., A) in [-1, 1], as `act` returns them. Returns float32 of the same shape, inside the
        environment's bounds: -1 and 1 become the bounds where the policy's actions are scaled, else they are held to
        them. Raises: UsageError for a policy that does not know them.
        """
        config, acts = self.config, self.config.acts
        if config.action_units is None or (acts.units == "scaled" and acts.bounds is None):
            raise UsageError(
                "this policy does not say what its actions stand for: it was trained by an earlier version, or without "
                "its environment; scale them by the environment's action_space"
            )
        actions = np.asarray(actions, np.float32)
        if acts.bounds is None:
            return actions
        taken = units.from_unit(actions, acts.bounds) if acts.scales else np.clip(actions, *acts.bounds)
        return taken.astype(np.float32)

    def act_members(
        self, obs_SBD: np.ndarray, noise: np.ndarray | None = None, gumbel: np.ndarray | None = None
    ) -> np.ndarray:
        """Choose actions (S, B, A) for observations (S, B, D) or (S, B, H, W, C) of all members, B at least 1.

        Args and Raises: as `act`, with a leading axis of members.
        """
        obs_SBD = observations(obs_SBD, self.config)
        one = self.members, *self.config.observation
        if obs_SBD.shape[:1] + obs_SBD.shape[2:] != one or not obs_SBD.shape[1]:
            raise UsageError(
                f"observations of shape {obs_SBD.shape}, expected ({one[0]}, B, {_sizes(one[1:])}) with B at least 1: "
                "members, observations, and the shape of one"
            )
        return self._act(obs_SBD, noise, gumbel)

    def _act(self, obs_SBD: np.ndarray, noise: np.ndarray | None, gumbel: np.ndarray | None) -> np.ndarray:
        """Choose actions for observations that were checked."""
        config, obs_SBD = self.config, self._normalised(obs_SBD)
        rows = obs_SBD.shape[1] * config.candidates
        self._calls += noise is None
        if noise is None:
            z = self._noise.of_call(self._calls, rows)
        else:
            z = numbers(noise, "noise")
            if z.shape != (self.members, rows, self.noise_columns):
                expected = rows, self.noise_columns
                raise UsageError(f"noise of shape {z.shape[1:]}, expected {expected}; leave it out to have it drawn")
        if gumbel is not None:
            gumbel = numbers(gumbel, "gumbel")
            if self._choice is None or gumbel.shape != (self.members, rows):
                expected = f"({rows},)" if self._choice else f"none: this policy selects by {config.select}"
                raise UsageError(f"gumbel of shape {gumbel.shape[1:]}, expected {expected}; leave it out")
        elif self._choice is not None:
            gumbel = self._choice.of_call(self._calls, rows)[..., 0]
        return self._sampler.actions(obs_SBD, z, gumbel)

    def _normalised(self, obs: np.ndarray) -> np.ndarray:
        """Normalise raw observations as in training: a policy does so only here."""
        mean, std = self.config.obs_mean, self.config.obs_std
        return obs if mean is None or std is None else replay.scaled(obs, mean, std)

    @torch.inference_mode()
    def paths(self, obs_SBD: np.ndarray) -> np.ndarray:
        """Return every point from noise to action, unclamped, float32 (K + 1, S, B, A), with new noise for each row."""
        self._calls += 1
        z = torch.tensor(self._noise.of_call(self._calls, obs_SBD.shape[1])).to(self.device)
        obs = torch.as_tensor(self._normalised(observations(obs_SBD, self.config)))
        obs = encode_obs(self._actor, obs.to(self.device))
        path = self._algorithm.path(self._actor, obs, z, self.config)
        return torch.stack(path).cpu().numpy()


def member_of(config: PolicyConfig, tensors: dict[str, Tensor], seed: int) -> tuple[PolicyConfig, dict[str, Tensor]]:
    """Return the description and the parameters of one seed's member. Raises: UsageError for an unknown seed."""
    if seed not in config.seeds:
        raise UsageError(f"the run has seeds {list(config.seeds)}, not {seed}; choose one of them")
    i = config.seeds.index(seed)
    rows = {"actor": slice(i, i + 1), "critic": slice(2 * i, 2 * i + 2)}
    return replace(config, seeds=(seed,)), {name: tensor[rows[name]] for name, tensor in tensors.items()}


def load_policy(
    path: Path | str | SavedPolicy,
    seed: int | None = None,
    best: bool = False,
    device: str = "auto",
    sampling_steps: int | None = None,
    candidates: int | None = None,
    select: str | None = None,
    precision: str = "tf32",
) -> Policy:
    """Load a policy from a run directory (its newest valid checkpoint, or its best) or from a checkpoint directory.

    Args: path may also be the result of `find_policy`, so that no file is read twice. seed picks one member of a run;
    without it all members are loaded. `Policy.act` needs a policy of one member. sampling_steps, candidates and select
    override the run's settings. precision applies to products on a GPU.
    Raises: CheckpointError when there is no usable checkpoint; UsageError for a seed that the run does not have.
    """
    saved = path if isinstance(path, SavedPolicy) else find_policy(Path(path), best)
    policy_tensors, config = saved.tensors, PolicyConfig.from_json(saved.meta.get("policy", {}))
    changes = {"sampling_steps": sampling_steps, "candidates": candidates, "select": select}
    if sampling_steps not in (None, config.sampling_steps) and not algorithms.of(config).STEPS_ARE_FREE:
        raise UsageError(
            f"a policy of --algo {config.algo} acts in the {config.sampling_steps} steps of its training, not in "
            f"--sampling-steps {sampling_steps}; train another policy for that"
        )
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if candidates is not None and select is None:
        config = replace(config, select=("none" if candidates == 1 else "softmax"))
    if seed is not None:
        config, policy_tensors = member_of(config, policy_tensors, seed)
    return Policy(config, policy_tensors, _device(device), precision)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device={name!r} is not a device of torch; pass 'auto', 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={name!r}: torch {torch.__version__} sees no NVIDIA GPU; pass 'cpu' or 'auto'")
    return device


def observations(values: Any, config: PolicyConfig) -> np.ndarray:
    """Return observations as float32, images as uint8. Raises: UsageError for values of another kind."""
    if config.frame_shape is None:
        return numbers(values, "an observation")
    if (found := np.asarray(values)).dtype != np.uint8:
        raise UsageError(f"image observations of {found.dtype}, expected uint8 of 0 to 255; pass the environment's own")
    return found


def numbers(values: Any, what: str) -> np.ndarray:
    """Return values as a float32 array. Raises: UsageError for values that are not an array of finite numbers."""
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


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


class CallNoise:
    """Standard normals of one stream, or Gumbel(0, 1) numbers made from them, for each call of a policy.

    They are a function of (seed, call, row). Numbers for many calls are drawn at once and kept as a cache, so a call's
    numbers do not depend on the calls before.
    Legend: S members, R rows (observations times candidates), A columns.
    """

    def __init__(self, seeds: tuple[int, ...], stream: int, columns: int, gumbel: bool = False):
        self._seeds, self._stream, self._columns, self._gumbel, self._first = seeds, stream, columns, gumbel, 0
        self._drawn: tuple[int, np.ndarray] = 0, np.empty((0, 0, 0, 0), np.float32)

    def from_row(self, first: int) -> CallNoise:
        """Return the same noise, shifted by `first` rows: its row 0 is row `first` here."""
        other = CallNoise(self._seeds, self._stream, self._columns, self._gumbel)
        other._first = self._first + first
        return other

    def of_call(self, call: int, rows: int) -> np.ndarray:
        """Return the numbers of a call, float32 (S, rows, columns). The caller must not write to them."""
        first, block = self._drawn
        if block.shape[2] != rows or not first <= call < first + len(block):
            first, block = self._drawn = call, self._draw(call, rows)
        return block[call - first]

    def _draw(self, first: int, rows: int) -> np.ndarray:
        """Draw several calls from `first` on, (calls, S, rows, columns); each call of each member has a Philox key."""
        counters = rng.counters_for_normals(rows, self._columns)
        # A policy without noise needs no counters.
        calls = max(1, BLOCK_COUNTERS // max(1, counters * len(self._seeds)))
        keys = rng.seed_keys(list(self._seeds), "cpu").repeat(calls, 1)
        steps = torch.arange(first, first + calls).repeat_interleave(len(self._seeds))[:, None]
        layout = rng.plan({self._stream: counters}, "cpu")
        skipped = rng.counters_for_normals(self._first, self._columns)
        words = rng.random_bits(replace(layout, element=layout.element + skipped), keys, steps)[self._stream]
        numbers = rng.normals(words, rows, self._columns)
        if self._gumbel:
            numbers = _gumbel(numbers)
        return numbers.unflatten(0, (calls, -1)).numpy()


def _gumbel(normals: Tensor) -> Tensor:
    """Turn normals into Gumbel(0, 1) numbers G: the candidate with the largest Q + G is a draw from softmax(Q)."""
    uniform = torch.special.ndtr(normals.double()).clamp(1e-12, 1 - 1e-12)
    return (-(-uniform.log()).log()).float()
