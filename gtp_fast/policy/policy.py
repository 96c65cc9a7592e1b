"""The noise of a policy's calls: a function of (seed, call, row), drawn for many calls at once.

Legend: S members, R rows (observations times candidates), A columns.

A trained policy: observations in, actions in [-1, 1] out, without autograd and without loops over candidates.

What it is, how it is loaded and what it refuses stands here; how it acts, in `act_cpu` and `sampler`.
Legend: S members (seeds of one run), B observations, C candidates, D observation, A action.

A policy from the files of a run: which checkpoint, which member, on which device.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gtp_fast import algorithms, rng
from gtp_fast.algorithms.encoder import see
from gtp_fast.algorithms.equations import sampling_grid
from gtp_fast.algorithms.networks import views
from gtp_fast.algorithms.policy_config import PolicyConfig, check
from gtp_fast.data import replay
from gtp_fast.device import missing_for_kernels
from gtp_fast.errors import UsageError
from gtp_fast.policy.samplers import AlgorithmSampler, CpuSampler, Sampler, TorchSampler, numbers, observations
from gtp_fast.runs.records import SavedPolicy, find_policy

# One call's numbers take 0.33 ms, almost all of it the dispatch of Philox's operations; those of 1,024 counters, 512
# calls at batch 1, take 0.41 ms (2026-11, EPYC Zen 5, one thread). A longer block saves nothing and delays its call.
BLOCK_COUNTERS = 1_024


class CallNoise:
    """Standard normals of one stream, call by call, or Gumbel's numbers made of them.

    What is kept is a cache: a call's numbers do not depend on which calls were asked for before.
    """

    def __init__(self, seeds: tuple[int, ...], stream: int, columns: int, gumbel: bool = False):
        self._seeds, self._stream, self._columns, self._gumbel, self._first = seeds, stream, columns, gumbel, 0
        self._drawn: tuple[int, np.ndarray] = 0, np.empty((0, 0, 0, 0), np.float32)

    def from_row(self, first: int) -> CallNoise:
        """Return the same noise without each call's first rows: its row 0 is row `first` here."""
        other = CallNoise(self._seeds, self._stream, self._columns, self._gumbel)
        other._first = self._first + first
        return other

    def of_call(self, call: int, rows: int) -> np.ndarray:
        """Return the numbers of a call, float32 (S, rows, columns); not to be written to."""
        first, block = self._drawn
        if block.shape[2] != rows or not first <= call < first + len(block):
            first, block = self._drawn = call, self._draw(call, rows)
        return block[call - first]

    def _draw(self, first: int, rows: int) -> np.ndarray:
        """Draw the calls from `first` on, (calls, S, rows, columns): each call of a member is one more key."""
        counters = rng.counters_for_normals(rows, self._columns)
        calls = max(1, BLOCK_COUNTERS // max(1, counters * len(self._seeds)))  # no columns take no counters
        keys = rng.seed_keys(list(self._seeds), "cpu").repeat(calls, 1)
        steps = torch.arange(first, first + calls).repeat_interleave(len(self._seeds))[:, None]
        layout = rng.plan({self._stream: counters}, "cpu")
        skipped = rng.counters_for_normals(self._first, self._columns)
        words = rng.words(replace(layout, element=layout.element + skipped), keys, steps)[self._stream]
        numbers = rng.normals(words, rows, self._columns)
        if self._gumbel:
            numbers = _gumbel(numbers)
        return numbers.unflatten(0, (calls, -1)).numpy()


def _gumbel(normals: Tensor) -> Tensor:
    """Turn normals into Gumbel's numbers G: the largest of Q + G is a draw from softmax(Q)."""
    uniform = torch.special.ndtr(normals.double()).clamp(1e-12, 1 - 1e-12)
    return (-(-uniform.log()).log()).float()


PRECISIONS = ("fp32", "tf32", "bf16")


class Policy:
    """The EMA actors of a run's members, with the target critics where candidates are to be judged.

    Noise comes from the caller, or from a counter-based stream of (seed, number of the call): a policy that is loaded
    anew draws the same actions again.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tensors: dict[str, Tensor],
        device: torch.device | str = "cpu",
        precision: str = "tf32",
    ):
        """Take a policy's description and its flat parameters {"actor": (S, Pa), "critic": (2 S, Pc)}.

        precision ("fp32", "tf32" or "bf16") is that of the operands of products on a GPU; a CPU acts in fp32.
        Raises: UsageError where candidates cannot be judged; CheckpointError where shapes do not fit.
        """
        self._algorithm = algorithms.of(config.algo)
        layouts = self._algorithm.layouts(config, config.obs_shape, config.action_dim)
        check(config, tensors, layouts)
        self.config, self.device, self._calls = config, torch.device(device), 0
        self._tensors, self._precision = tensors, precision
        self._actor, self._critic = views(tensors["actor"].to(device), layouts["actor"]), None
        if config.candidates > 1:
            self._critic = views(tensors["critic"].to(device), layouts["critic"])
        self._columns = self._algorithm.noise_columns(config)
        self._sampler = self._make_sampler(tensors, precision)
        self._noise = CallNoise(config.seeds, rng.ACT, self._columns)
        self._choice = CallNoise(config.seeds, rng.SELECT, 1, gumbel=True) if config.select == "softmax" else None

    def _make_sampler(self, tensors: dict[str, Tensor], precision: str) -> Sampler:
        config, critic = self.config, self._critic
        if precision not in PRECISIONS:
            raise UsageError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}")
        if config.algo != "gtp" or config.frame_shape:
            return AlgorithmSampler(config, self._actor, critic)
        on_gpu = self.device.type == "cuda"
        if on_gpu and missing_for_kernels(config.hidden, config.sampling_steps, precision) is None:
            from gtp_fast.policy.cuda_sampler import CudaSampler  # Triton is not needed elsewhere

            return CudaSampler(config, tensors, self.device, precision)
        kind = CpuSampler if self.device.type == "cpu" else TorchSampler
        grid = sampling_grid(config.sampling_steps, config.sigma_min, config.sigma_max, config.rho, self.device)
        return kind(self._actor, critic, grid, config.sigma_data, config.sigma_min, config.process)

    @property
    def members(self) -> int:
        """Number of members S."""
        return len(self.config.seeds)

    @property
    def steps_are_free(self) -> bool:
        """Whether it may act in another number of steps than it was trained with."""
        return self._algorithm.STEPS_ARE_FREE

    def anew(self, first: int = 0) -> Policy:
        """Return this policy, its parameters shared, its noise begun again: of observations from `first` on."""
        other, row = copy.copy(self), first * self.config.candidates
        other._calls, other._noise = 0, self._noise.from_row(row)
        other._choice = self._choice and self._choice.from_row(row)
        return other

    def member(self, seed: int) -> Policy:
        """Return one member as a policy of its own. Raises: UsageError for a seed that no member has."""
        return Policy(*member_of(self.config, self._tensors, seed), self.device, self._precision)

    def plain(self) -> Policy:
        """Return this policy acting by its algorithm's formulas in torch: what its own way is measured against."""
        other = self.anew()
        other._sampler = self.formulas
        return other

    @property
    def formulas(self) -> AlgorithmSampler:
        """Its algorithm's formulas in torch: what is exported and compared with; they take what networks see."""
        return AlgorithmSampler(self.config, self._actor, self._critic)

    @property
    def noise_columns(self) -> int:
        """How many standard normals one action takes, 0 for a deterministic policy."""
        return self._columns

    @property
    def runtime(self) -> str:
        """What acts: "numpy", "fused" (one captured launch), or "torch"."""
        return {"CpuSampler": "numpy", "CudaSampler": "fused"}.get(type(self._sampler).__name__, "torch")

    def act(self, obs: np.ndarray, noise: np.ndarray | None = None, gumbel: np.ndarray | None = None) -> np.ndarray:
        """Choose actions for one observation (D,) or several (B, D); of pictures (H, W, C) or (B, H, W, C).

        Args: obs float, pictures uint8; noise, float32 (B * candidates, N) standard normals, candidates of a state in a
        row, N = `noise_columns`: A but for algorithms whose steps add noise of their own; gumbel, float32 (B *
        candidates,) Gumbel(0, 1) numbers, for softmax alone. Both are drawn when absent. Returns float32 (A,) or (B, A)
        in [-1, 1].
        Raises: UsageError for another shape, for what holds no finite numbers, or for a policy of several members:
        load it with a seed.
        """
        if self.members != 1:
            raise UsageError(f"this policy has {self.members} members; load one with seed= (of {self.config.seeds})")
        obs, one = observations(obs, self.config), self.config.observation
        single = obs.ndim == len(one)
        if obs.ndim - len(one) not in (0, 1) or obs.shape[-len(one) :] != one or not len(obs):
            raise UsageError(
                f"observations of shape {obs.shape}, expected {one} or (B, {_sizes(one)}) with B at least 1; check the "
                "environment of this policy"
            )
        z = None if noise is None else numbers(noise, "noise")[None]
        g = None if gumbel is None else numbers(gumbel, "gumbel")[None]
        actions = self.act_members(obs.reshape(1, -1, *one), z, g)[0]
        return actions[0] if single else actions

    def act_members(
        self, obs_SBD: np.ndarray, noise: np.ndarray | None = None, gumbel: np.ndarray | None = None
    ) -> np.ndarray:
        """Choose actions (S, B, A) for observations (S, B, D) or (S, B, H, W, C) of all members, B at least 1.

        Args and Raises: as `act`, with a leading axis of members.
        """
        config, obs_SBD = self.config, observations(obs_SBD, self.config)
        one = self.members, *config.observation
        if obs_SBD.shape[:1] + obs_SBD.shape[2:] != one or not obs_SBD.shape[1]:
            raise UsageError(
                f"observations of shape {obs_SBD.shape}, expected ({one[0]}, B, {_sizes(one[1:])}) with B at least 1: "
                "members, observations, and the shape of one"
            )
        obs_SBD = self._seen(obs_SBD)
        rows = obs_SBD.shape[1] * config.candidates
        self._calls += noise is None
        if noise is None:
            z = self._noise.of_call(self._calls, rows)
        else:
            z = numbers(noise, "noise")
            if z.shape != (self.members, rows, self._columns):
                raise UsageError(f"noise of shape {z.shape[1:]}, expected {(rows, self._columns)}")
        if gumbel is not None:
            gumbel = numbers(gumbel, "gumbel")
            if self._choice is None or gumbel.shape != (self.members, rows):
                expected = f"({rows},)" if self._choice else f"none: this policy selects by {config.select}"
                raise UsageError(f"gumbel of shape {gumbel.shape[1:]}, expected {expected}")
        elif self._choice is not None:
            gumbel = self._choice.of_call(self._calls, rows)[..., 0]
        return self._sampler.actions(obs_SBD, z, gumbel)

    def _seen(self, obs: np.ndarray) -> np.ndarray:
        """Return what the networks see of raw observations: the one place where a policy normalises them."""
        mean, std = self.config.obs_mean, self.config.obs_std
        return obs if mean is None or std is None else replay.scaled(obs, mean, std)

    @torch.inference_mode()
    def paths(self, obs_SBD: np.ndarray) -> np.ndarray:
        """Return every point on the way from noise to action, unclamped, float32 (K + 1, S, B, A); one draw a row."""
        self._calls += 1
        z = torch.tensor(self._noise.of_call(self._calls, obs_SBD.shape[1])).to(self.device)
        obs = torch.as_tensor(self._seen(observations(obs_SBD, self.config)))
        obs = see(self._actor, obs.to(self.device))
        path = self._algorithm.path(self._actor, obs, z, self.config)
        return torch.stack(path).cpu().numpy()


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def member_of(config: PolicyConfig, tensors: dict[str, Tensor], seed: int) -> tuple[PolicyConfig, dict[str, Tensor]]:
    """Return the description and the parameters of one seed's member. Raises: UsageError for a seed it has not."""
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

    Args: path may also be what `find_policy` read: then no file is read again. seed picks one member of a run of
    several; without it all are loaded, and a run of one member acts at once.
    sampling_steps, candidates, select override what the run was trained with. precision is that of products on a GPU.
    Raises: CheckpointError when there is no usable checkpoint; UsageError for a seed that the run has not.
    """
    saved = path if isinstance(path, SavedPolicy) else find_policy(Path(path), best)
    policy_tensors, config = saved.tensors, PolicyConfig.from_json(saved.meta.get("policy", {}))
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
