"""What the tests of the fused step share: small states on both backends, and launches on guarded tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import learn_cases
import torch
from gtp_kernels.launch import Launch, Tuning
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config, transitions
from learn_cases import STABLE as STABLE  # for the tests of the kernels
from torch import Tensor

from gtp_fast import algorithms
from gtp_fast.algorithms import fused
from gtp_fast.algorithms.fused import FusedStep
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig

GUARD = 1 << 16  # elements before and after each tensor
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def fused_config(**changes: Any) -> TrainConfig:
    """Return the small configuration for the fused step, in float32."""
    return replace(small_config(), device=DEVICE, **({"backend": "fused", "precision": "fp32"} | changes))


def prepared(
    cfg: TrainConfig, shapes: Tuning | None = None, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM
) -> tuple[TrainState, FusedStep]:
    """Return a fresh state and its fused step."""
    state = algorithms.init_state(cfg, obs_dim, action_dim, DEVICE)
    buffer = buffer_of(cfg, transitions(obs_dim=obs_dim, action_dim=action_dim), DEVICE)
    return state, fused.make_step(cfg, state, buffer, shapes)


def trained(cfg: TrainConfig, steps: int, shapes: Tuning | None = None) -> TrainState:
    """Return the state after fused steps."""
    state, step = prepared(cfg, shapes)
    for _ in range(steps):
        step()
    return state


def trained_eagerly(cfg: TrainConfig, steps: int) -> TrainState:
    """Return the state after the same steps of the eager backend in float32, on the CPU."""
    return learn_cases.trained(replace(cfg, backend="eager", precision="fp32", device="cpu"), steps)


def way_apart(fused_state: TrainState, eager: TrainState, start: TrainState) -> dict[str, float]:
    """Return each tensor's distance between the states, as a share of the eager state's distance from the start."""
    shares = {}
    for name, tensor in eager.tensors().items():
        way = (tensor.double() - start.tensors()[name].double()).norm()
        apart = (tensor.double() - fused_state.tensors()[name].cpu().double()).norm()
        shares[name] = float(apart / way) if way > 0 else float(apart)
    return shares


class Guarded:
    """A step's launches on copies of their tensors, each between guards of NaN; shared storage stays shared."""

    def __init__(self, launches: tuple[Launch, ...]):
        self._storages: dict[int, tuple[Tensor, int]] = {}
        self.launches = [replace(launch, args=self._guard(launch.args)) for launch in launches]

    def _guard(self, args: dict[str, Any]) -> dict[str, Any]:
        return {name: self._copy(value) if isinstance(value, Tensor) else value for name, value in args.items()}

    def _copy(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)  # pyright: ignore
        if storage.data_ptr() not in self._storages:
            padding = whole.new_full((GUARD,), float("nan") if whole.is_floating_point() else -(2**30))
            self._storages[storage.data_ptr()] = torch.cat([padding, whole, padding]), len(whole)
        guarded, _ = self._storages[storage.data_ptr()]
        return guarded.as_strided(tensor.shape, tensor.stride(), GUARD + tensor.storage_offset())

    def untouched(self) -> bool:
        """Return whether no guard has changed."""
        return all(
            bool((edge.isnan() if edge.is_floating_point() else edge == -(2**30)).all())
            for guarded, size in self._storages.values()
            for edge in (guarded[:GUARD], guarded[GUARD + size :])
        )
