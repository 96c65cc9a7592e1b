"""Acting on a GPU: one captured graph from a pinned observation to a pinned action, without work on the host.

The graph copies the inputs in, runs the K-step chain as one launch, with several candidates also the critic's heads and
the choice, and copies the actions out. Each number of observations has a graph of its own.

Legend: S members, B observations, C candidates of each, R = B C rows, D observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gtp_kernels.chain import gtp_chain, gtp_choose
from gtp_kernels.critic import gtp_heads
from gtp_kernels.launch import INTERPRETED, Launch, Operands, blocks, padded, shared_memory, tuned_for
from torch import Tensor

from gtp_fast.algorithms.backends import capture_once
from gtp_fast.algorithms.equations import sampling_grid
from gtp_fast.algorithms.networks import actor_layout, critic_layout
from gtp_fast.algorithms.policy_config import PolicyConfig

KEPT_GRAPHS = 8  # for different numbers of observations; another one replaces the oldest


class CudaSampler:
    """A policy's parameters on a GPU and the graphs that act with them; a `samplers.Sampler`."""

    def __init__(self, config: PolicyConfig, tensors: dict[str, Tensor], device: torch.device, precision: str):
        """Take the flat parameters {"actor": (S, Pa), "critic": (2 S, Pc)} that `policy_config.check` passed.

        precision: "fp32", "tf32" or "bf16", that of the operands of the hidden layers' products.
        """
        self._precision, self._config, self._device, self._members = precision, config, device, len(config.seeds)
        sizes = config.obs_dim, config.action_dim, config.hidden
        layouts = {"actor": actor_layout(*sizes), "critic": critic_layout(*sizes)}
        used = ("actor", "critic") if config.candidates > 1 else ("actor",)
        self._nets = {
            name: Operands.of(tensors[name].to(device), config.hidden, layouts[name].places["mlp1.w"][0], precision)
            for name in used
        }
        self._grid = sampling_grid(config.sampling_steps, config.sigma_min, config.sigma_max, config.rho, device)
        self._calls: dict[int, _Call] = {}

    def actions(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        """See `samplers.Sampler.actions`."""
        count = obs_SBD.shape[1]
        if count not in self._calls:
            if len(self._calls) == KEPT_GRAPHS:
                del self._calls[next(iter(self._calls))]
            self._calls[count] = _Call(self, count)
        return self._calls[count](obs_SBD, z_SRA, gumbel_SR)

    def launches(self, call: _Call) -> list[Launch]:
        """Return the launches of a call: one, or three with several candidates."""
        config, members = self._config, self._members
        rows, action_width = call.count * config.candidates, padded(config.action_dim)
        shapes = tuned_for(config.hidden, rows, shared_memory(self._grid))
        network = {
            "D": config.obs_dim, "A": config.action_dim, "AP": action_width, "W": config.obs_dim, "H": config.hidden,
            "ROWS": rows, "REPEAT": config.candidates, "BM": shapes.rows, "BN": shapes.units,
            "STAGES": shapes.stages, "PREC": self._precision, "INTERP": INTERPRETED,
        }  # fmt: skip
        tiles = blocks(rows, shapes.rows)
        chain = {
            "rows_ptr": call.obs, "noise_ptr": call.noise, "seed_ptr": None, "step_ptr": None,
            "offset": 0, "grid_ptr": self._grid, "action_ptr": call.actions, "batch_ptr": None, "size": 0,
            "sigma_min": config.sigma_min, "sigma_data": config.sigma_data, "BATCH": 0, "NEXT": 0,
            "K": config.sampling_steps, "KEEP": shapes.keep, "FLOW": config.process == "flow",
        }  # fmt: skip
        chain |= self._nets["actor"].args() | network
        launches = [Launch("chain", gtp_chain, (tiles, members), chain, shapes.forward_warps, shapes.stages)]
        if config.candidates == 1:
            return launches
        heads = {
            "obs_ptr": call.obs, "batch_action_ptr": None, "action_ptr": call.actions, "q_ptr": call.q,
            "obs_rows": call.count, "action_rows": rows, "FROM_BATCH": 0, "WRAP": rows,
        }  # fmt: skip
        heads |= self._nets["critic"].args() | network
        choose = {
            "action_ptr": call.actions, "q_ptr": call.q, "chosen_ptr": call.chosen,
            "gumbel_ptr": call.gumbel if config.select == "softmax" else None,
            "observations": call.count, "CANDIDATES": config.candidates, "PADDED": padded(config.candidates),
            "A": config.action_dim, "AP": action_width, "NOISY": config.select == "softmax",
        }  # fmt: skip
        return [
            *launches,
            Launch("heads", gtp_heads, (tiles, 2, members), heads, shapes.forward_warps, shapes.stages),
            Launch("choose", gtp_choose, (call.count, members), choose, warps=1),
        ]


class _Call:
    """The pinned and the device buffers of a call with `count` observations, and its captured graph."""

    def __init__(self, sampler: CudaSampler, count: int):
        config, members, device = sampler._config, sampler._members, sampler._device
        self.count, rows = count, count * config.candidates
        sizes = [members * n for n in (count * config.obs_dim, rows * config.action_dim, rows)]
        pinned = device.type == "cuda"
        self._input = torch.zeros(sum(sizes), pin_memory=pinned)
        self._output = torch.zeros(members, count, config.action_dim, pin_memory=pinned)
        self._device_input = torch.zeros(sum(sizes), device=device)
        obs, noise, gumbel = self._device_input.split(sizes)
        self.obs, self.noise, self.gumbel = obs, noise, gumbel
        self._host = [part.numpy() for part in self._input.split(sizes)]
        self.actions = torch.zeros(members, rows, config.action_dim, device=device)
        self.q = torch.zeros(members, 2, rows, device=device)
        self.chosen = torch.zeros_like(self._output, device=device) if config.candidates > 1 else self.actions
        self._launches = sampler.launches(self)
        self._run: Callable[[], None] = capture_once(self._step, device)

    def _step(self) -> None:
        self._device_input.copy_(self._input, non_blocking=True)
        for launch in self._launches:
            launch()
        self._output.copy_(self.chosen, non_blocking=True)

    def __call__(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        obs, noise, gumbel = self._host
        obs[:] = obs_SBD.ravel()
        noise[:] = z_SRA.ravel()
        if gumbel_SR is not None:
            gumbel[:] = gumbel_SR.ravel()
        self._run()
        return self._output.numpy().copy()
