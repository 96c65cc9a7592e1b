"""Acting on a GPU: one captured graph from a pinned observation to a pinned action, without work on the host.

The graph runs the K-step chain as one launch, with several candidates also the critic's heads and the choice. Few rows
are spread over many blocks by `gtp_act`; more go through `gtp_chain`. A single row is read from the host's memory and
its action written there; of more rows the graph copies inputs and actions. Each number of observations has a graph of
its own.

H200, 2026-11-27, us a call, TF32, K = 5 (K = 2). One row: 88 (56) by `gtp_chain`, 39 (31) by `gtp_act`, 32
without copies. 50 candidates: 107 (73) and 81 (63), without copies 87.

Legend: S members, B observations, C candidates of each, R = B C rows, D observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gtp_kernels.acting import gtp_act
from gtp_kernels.chain import gtp_chain, gtp_choose
from gtp_kernels.critic import gtp_heads
from gtp_kernels.launch import (
    INTERPRETED,
    Launch,
    Operands,
    blocks,
    multiprocessors,
    operand_type,
    padded,
    shared_memory,
    spread,
    tuned_for,
)
from torch import Tensor

from gtp_fast.algorithms.backends import capture_once
from gtp_fast.algorithms.equations import sampling_grid
from gtp_fast.algorithms.networks import actor_layout, critic_layout, views
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.policy.samplers import chain_factors

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
        actor = {name: x.cpu().double() for name, x in views(tensors["actor"], layouts["actor"]).items()}
        noise = config.sigma_data, config.sigma_min, config.process
        times, *factors = chain_factors(actor, self._grid.cpu().double(), *noise)
        self._times_SKH, self._factors_K3 = (x.float().to(device) for x in (times, torch.stack(factors, dim=1)))
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
        rows = call.count * config.candidates
        tile = spread(rows, config.hidden, members, multiprocessors(self._grid))
        launches = [self._spread(call, *tile) if tile else self._chain(call)]
        if config.candidates == 1:
            return launches
        heads = {
            "obs_ptr": call.obs, "batch_action_ptr": None, "action_ptr": call.actions, "q_ptr": call.q,
            "obs_rows": call.count, "action_rows": rows, "FROM_BATCH": 0, "WRAP": rows,
        }  # fmt: skip
        choose = {
            "action_ptr": call.actions, "q_ptr": call.q, "chosen_ptr": call.chosen,
            "gumbel_ptr": call.gumbel if config.select == "softmax" else None,
            "observations": call.count, "CANDIDATES": config.candidates, "PADDED": padded(config.candidates),
            "A": config.action_dim, "AP": padded(config.action_dim), "NOISY": config.select == "softmax",
        }  # fmt: skip
        return [
            *launches,
            self._network("heads", gtp_heads, (2, members), "critic", call.count, heads),
            Launch("choose", gtp_choose, (call.count, members), choose, warps=1),
        ]

    def _chain(self, call: _Call) -> Launch:
        """Bind `gtp_chain`, in which a block has a tile of rows to itself."""
        config = self._config
        args = {
            "rows_ptr": call.obs, "noise_ptr": call.noise, "seed_ptr": None, "step_ptr": None, "offset": 0,
            "grid_ptr": self._grid, "action_ptr": call.actions, "batch_ptr": None, "size": 0,
            "sigma_min": config.sigma_min, "sigma_data": config.sigma_data, "BATCH": 0, "NEXT": 0,
            "K": config.sampling_steps, "FLOW": config.process == "flow",
        }  # fmt: skip
        return self._network("chain", gtp_chain, (self._members,), "actor", call.count, args)

    def _network(
        self, phase: str, kernel: object, beside: tuple[int, ...], net: str, count: int, args: dict[str, object]
    ) -> Launch:
        """Bind a kernel that runs a network on tiles of rows; beside: its grid behind the tiles."""
        config, rows = self._config, count * self._config.candidates
        shapes = tuned_for(config.hidden, rows, shared_memory(self._grid))
        operand, chain = operand_type(self._precision), kernel is gtp_chain
        network = {
            "hidden_ptr": self._grid.new_empty(*beside, rows, 2 * config.hidden, dtype=operand),
            "BK": shapes.columns(config.hidden, operand, chain), **({"KEEP": shapes.keep} if chain else {}),
            "D": config.obs_dim, "A": config.action_dim, "AP": padded(config.action_dim), "W": config.obs_dim,
            "H": config.hidden, "ROWS": rows, "REPEAT": config.candidates, "BM": shapes.rows,
            "STAGES": shapes.stages, "PREC": self._precision, "INTERP": INTERPRETED,
        }  # fmt: skip
        grid = blocks(rows, shapes.rows), *beside
        args = args | self._nets[net].args() | network
        return Launch(phase, kernel, grid, args, shapes.warps, shapes.stages)

    def _spread(self, call: _Call, tile_rows: int, tile_blocks: int, warps: int) -> Launch:
        """Bind `gtp_act`, in which several blocks share a tile of rows."""
        config, rows = self._config, call.count * self._config.candidates
        tiles = blocks(rows, tile_rows)
        words = 2 * tile_blocks * tile_rows * config.hidden
        args = {
            "obs_ptr": call.obs, "noise_ptr": call.noise, "time_ptr": self._times_SKH, "step_ptr": self._factors_K3,
            "action_ptr": call.actions, "sigma_max": float(self._grid[0]), "ROWS": rows, "REPEAT": config.candidates,
            "mail_ptr": self._grid.new_zeros(self._members * tiles * words, dtype=torch.int64),
            "number_ptr": self._grid.new_ones(self._members * tiles, dtype=torch.int32),
            "D": config.obs_dim, "A": config.action_dim, "AP": padded(config.action_dim, 1), "H": config.hidden,
            "K": config.sampling_steps, "R": tile_rows, "G": tile_blocks, "PREC": self._precision,
            "INTERP": INTERPRETED,
        } | self._nets["actor"].args()  # fmt: skip
        return Launch("chain", gtp_act, (tiles * tile_blocks, self._members), args, warps, 1, cooperative=True)


class _Call:
    """The pinned and the device buffers of a call with `count` observations, and its captured graph."""

    def __init__(self, sampler: CudaSampler, count: int):
        config, members, device = sampler._config, sampler._members, sampler._device
        self.count, rows = count, count * config.candidates
        sizes = [members * n for n in (count * config.obs_dim, rows * config.action_dim, rows)]
        pinned, several = device.type == "cuda", config.candidates > 1
        self._input = torch.zeros(sum(sizes), pin_memory=pinned)
        self._output = torch.zeros(members, count, config.action_dim, pin_memory=pinned)
        self._host = [part.numpy() for part in self._input.split(sizes)]
        self._copied = rows * members > 1  # many blocks would read the host's memory again and again
        self._device_input = torch.zeros_like(self._input, device=device) if self._copied else self._input
        self.obs, self.noise, self.gumbel = self._device_input.split(sizes)
        self.chosen = torch.zeros_like(self._output, device=device) if self._copied else self._output
        self.actions = torch.zeros(members, rows, config.action_dim, device=device) if several else self.chosen
        self.q = torch.zeros(members, 2, rows, device=device)
        self._launches = sampler.launches(self)
        self._run: Callable[[], None] = capture_once(self._step, device)

    def _step(self) -> None:
        if self._copied:
            self._device_input.copy_(self._input, non_blocking=True)
        for launch in self._launches:
            launch()
        if self._copied:
            self._output.copy_(self.chosen, non_blocking=True)

    def __call__(self, obs_SBD: np.ndarray, z_SRA: np.ndarray, gumbel_SR: np.ndarray | None) -> np.ndarray:
        obs, noise, gumbel = self._host
        obs[:] = obs_SBD.ravel()
        noise[:] = z_SRA.ravel()
        if gumbel_SR is not None:
            gumbel[:] = gumbel_SR.ravel()
        self._run()
        return self._output.numpy().copy()
