"""Shared by the measurements: synthetic data, settings, and a step and a policy that are checked before timing.

obs 17, action 6, batch 256, as HalfCheetah.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench import tables
from gtp_fast import algorithms, device
from gtp_fast.algorithms import updates
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.policy_config import of_run
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.policy.policy import Policy

if TYPE_CHECKING:
    from gtp_kernels.launch import Tuning

    from gtp_fast.algorithms.fused import FusedStep

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
OBS_DIM, ACTION_DIM, ROWS, EPISODE = 17, 6, 10_000, 1_000
METHODS = {name: settings for name, (_, settings) in tables.METHODS.items()}
COMPARED = ("actor_loss", "critic_loss")
# Largest relative difference of the losses' mean over the first 20 steps from eager fp32, which draws the same numbers.
# Operands rounded to 11 and 8 bits in eager's forward passes left 1.3e-4 and 1.6e-3 at most (K = 5 and 2, two seeds,
# CPU, 2026-11-21). Thirty times that leaves room for rounded gradients, for the worst of 16 members, and for a dry
# run's one step of 16 rows (4.4e-2 in Triton's interpreter, which cuts bf16 off). Gross faults are found here, and fine
# ones by the tests.
AGREES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}


def config(**changes: Any) -> TrainConfig:
    """Return the settings of a measured run: the defaults on the CPU, eta 5 and 2M steps, with changes.

    Another algorithm than GTP has the settings of its own file in configs/algorithms.
    """
    defaults = {"env": "bench", "steps": 2_000_000, "device": "cpu", "backend": "eager", "precision": "fp32"}
    algo = changes.get("algo", "gtp")
    own = {"eta": 5.0} if algo == "gtp" else asdict(run_settings({"env": "HalfCheetah-v5", "algo": algo}))
    cfg = TrainConfig(**(own | defaults | changes))
    return replace(cfg, unroll=cfg.unroll or device.UNROLL.get(cfg.backend, 20))


def transitions(rows: int = ROWS) -> SimpleNamespace:
    """Return random transitions with the fields of `dataset.Transitions` that the buffer reads."""
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        obs_ND=rng.normal(size=(rows, OBS_DIM)).astype(np.float32),
        action_NA=rng.uniform(-1, 1, size=(rows, ACTION_DIM)).astype(np.float32),
        reward_N=rng.normal(size=rows).astype(np.float32),
        next_obs_ND=rng.normal(size=(rows, OBS_DIM)).astype(np.float32),
        terminal_N=rng.random(rows) < 0.01,
    )


def write_rows(path: Path, rows: int = ROWS, compression: str | None = None, successors: bool = False) -> int:
    """Write random transitions as D4RL's HDF5, in episodes of 1,000 steps; return the bytes of the arrays."""
    import h5py

    data, flags = transitions(rows), np.zeros(rows, bool)
    columns = {"observations": data.obs_ND, "actions": data.action_NA, "rewards": data.reward_N, "terminals": flags}
    columns["timeouts"] = np.arange(1, rows + 1) % EPISODE == 0
    if successors:
        columns["next_observations"] = data.next_obs_ND
    with h5py.File(path, "w") as out:
        return sum(out.create_dataset(name, data=x, compression=compression).nbytes for name, x in columns.items())


def buffer_of(cfg: TrainConfig, rows: int = ROWS) -> ReplayBuffer:
    """Return a buffer of random transitions on cfg.device."""
    return ReplayBuffer.from_transitions(transitions(rows), cfg, cfg.device)  # pyright: ignore[reportArgumentType]


def training(cfg: TrainConfig, rows: int = ROWS) -> tuple[TrainState, Callable[[int], None]]:
    """Return a fresh state on cfg.device and the function that makes n steps on it; beyond ROWS, rows repeat."""
    buffer = buffer_of(cfg, min(rows, ROWS))
    if rows > ROWS:
        buffer = replace(buffer, rows=buffer.rows.repeat(-(-rows // ROWS), 1)[:rows])
    state = algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, cfg.device)
    return state, stepper(cfg, state, buffer)


def opened(
    cfg: TrainConfig, steps: int, exact: bool = True
) -> tuple[TrainState, Callable[[int], None], dict[str, float]]:
    """Make some steps, check the losses; return the state, its stepper, the losses' difference and the memory taken.

    On a GPU the state is then where a whole graph begins.
    Args: exact allows a lower precision to give exactly fp32's losses, as on a CPU, which has no TF32.
    Raises: ValueError when the losses are not those of eager fp32, or a lower precision changes nothing.
    """
    before = memory_mib(begin=True)
    device.prepare(cfg)
    state, run = training(cfg)
    run(steps)
    used = memory_mib() - before
    expected = _expected(replace(cfg, backend="eager", precision="fp32", graph=False, unroll=1), steps)
    found = _losses(cfg, state)
    if GPU:
        run(-steps % cfg.unroll)
    device.prepare(cfg)  # the expected losses set another precision
    difference = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(found, expected, strict=True))
    if not difference <= AGREES[cfg.precision]:  # NaN is no agreement either
        raise ValueError(
            f"losses differ from eager fp32 by {difference:.2g}, allowed {AGREES[cfg.precision]}: not timed"
        )
    if cfg.precision != "fp32" and difference == 0.0 and not exact:
        raise ValueError(
            f"backend {cfg.backend} gives exactly fp32's losses for {cfg.precision}: it does not read precision"
        )
    return state, run, {"difference": difference, "memory_mib": used}


@lru_cache(maxsize=8)
def _expected(cfg: TrainConfig, steps: int) -> tuple[float, ...]:
    device.prepare(cfg)
    state, run = training(cfg)
    run(steps)
    return _losses(cfg, state)


def _losses(cfg: TrainConfig, state: TrainState) -> tuple[float, ...]:
    """Return each member's mean losses since the start."""
    names = algorithms.of(cfg).metric_names(cfg)
    columns = [names.index(name) for name in COMPARED if name in names]
    return tuple((state.metric_sums_SQ[:, columns].double() / state.step).flatten().tolist())


def memory_mib(begin: bool = False) -> float:
    """Return the largest memory so far: of the device's allocator, or of this process.

    Args: begin forgets what the device's allocator had before.
    """
    if not GPU:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    torch.cuda.synchronize()
    if begin:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def assert_finite(state: TrainState) -> None:
    """Raise ValueError if the timed steps left NaN or Inf: then their time means nothing."""
    if (state.first_bad_SQ >= 0).any():
        raise ValueError("the state holds NaN or Inf after timing")


def counted(cfg: TrainConfig) -> dict[str, int]:
    """Count the products of one step, which every backend has to compute, and the bytes of its eager form."""
    _, run = training(replace(cfg, backend="eager", graph=False, device="cpu", precision="fp32"))
    with FlopCounterMode(display=False) as flops:
        run(1)
    with _Bytes() as moved:
        run(1)
    return {"flops": flops.get_total_flops(), "eager_bytes": moved.total}


class _Bytes(TorchDispatchMode):
    """Bytes that the operations of an eager step read and write; for a gather, only the rows that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            written, read = _nbytes(found), _nbytes(args)
            self.total += 2 * written if func is torch.ops.aten.index_select.default else written + read
        return found


def _nbytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    return sum(map(_nbytes, values)) if isinstance(values, list | tuple) else 0


def fused_step(cfg: TrainConfig, shapes: Tuning | None) -> FusedStep:
    """Return a fused step on cfg.device; on the CPU it can be compiled ahead of time or interpreted."""
    from gtp_fast.algorithms.fused import make_step

    return make_step(cfg, algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, cfg.device), buffer_of(cfg), shapes)


def policy(cfg: TrainConfig, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM) -> Policy:
    """Return the untrained policy of a run, on cfg.device: its networks cost what trained ones cost."""
    state = algorithms.init_state(cfg, obs_dim, action_dim, cfg.device)
    return Policy(of_run(cfg, obs_dim, action_dim), updates.policy_tensors(state), state.step.device)


def acting(cfg: TrainConfig, *batch: int) -> tuple[Policy, np.ndarray]:
    """Return an untrained policy and observations of it.

    Raises: ValueError when it acts out of bounds, or otherwise than its formulas in torch: then it is not timed.
    """
    own, obs = policy(cfg), np.random.default_rng(0).normal(size=(*batch, OBS_DIM)).astype(np.float32)
    action = own.act(obs)
    if action.shape != (*batch, ACTION_DIM) or not np.abs(action).max() <= 1:  # NaN is out of bounds too
        raise ValueError(f"the policy acted {action}")
    apart = np.abs(own.reset_noise().act(obs) - own.reference().act(obs)).max(axis=-1)
    # 80 z at the start, 24 bits: 5e-6 in fp32. A slip in the formula or the noise would be a thousand times larger.
    # Candidates whose values nearly tie may be chosen otherwise: almost all agree on a CPU, fewer in TF32.
    close = np.mean(apart < (2e-5 if cfg.device == "cpu" else 0.05)) > 0.9
    if not close and (cfg.device == "cpu" or cfg.candidates == 1):
        raise ValueError(f"actions differ from those of the formulas by up to {apart.max():.2g}: not timed")
    return own, obs
