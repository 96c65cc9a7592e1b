"""The train step of `gtp` as ten fused launches, on the same state and from the same random numbers as the eager step.

`make_step` lists the launches in order. `Binding` allocates every tensor of a step once, so a CUDA graph can hold many
steps, and binds each kernel to its tensors: one method a launch. The actor's launch needs no critic, because the
advantage weights enter with the weight gradients; so it runs beside the chain.

Legend: S members (seeds), B batch rows, M rows of a parameter buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gtp_kernels.actor import gtp_actor
from gtp_kernels.advantage import gtp_advantage
from gtp_kernels.chain import gtp_chain
from gtp_kernels.critic import gtp_critic, gtp_heads
from gtp_kernels.gradients import gtp_gradients
from gtp_kernels.launch import (
    INTERPRETED,
    Launch,
    Operands,
    Saved,
    Tuning,
    actor_saved,
    blocks,
    critic_saved,
    padded,
    shared_memory,
    tuned_for,
)
from gtp_kernels.update import gtp_update
from torch import Tensor

from gtp_fast.algorithms import equations, gtp, optimizer, updates
from gtp_fast.algorithms.networks import actor_layout, critic_layout
from gtp_fast.algorithms.state import Net, TrainState
from gtp_fast.config import TrainConfig, grid_steps, member_seeds, member_values
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.profiling import phase
from gtp_fast.rng import seed_keys


@dataclass(frozen=True)
class FusedStep:
    """One train step. On a GPU the first launch runs on `stream` beside the next; launch number `join` waits for it.

    Code that writes the state from outside must call `refresh`, which rewrites the operand copies of the weights.
    """

    launches: tuple[Launch, ...]
    join: int
    refresh: Callable[[], None]
    scratch: dict[str, Tensor]
    stream: torch.cuda.Stream | None

    def __call__(self) -> None:
        """Launch the step on the current stream."""
        if self.stream is None:
            for launch in self.launches:
                with phase(launch.phase):
                    launch()
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), phase(self.launches[0].phase):
            self.launches[0]()
        for place, launch in enumerate(self.launches[1:], start=1):
            if place == self.join:
                torch.cuda.current_stream().wait_stream(self.stream)
            with phase(launch.phase):
                launch()


def make_step(cfg: TrainConfig, state: TrainState, buffer: ReplayBuffer, shapes: Tuning | None = None) -> FusedStep:
    """Bind the launches of a train step to a state and a buffer.

    Args: cfg with device and precision resolved; shapes replaces those of `tuned_for`, for measurements and tests.
    """
    bind = Binding(cfg, state, buffer, shapes or tuned_for(cfg.hidden, cfg.batch_size, shared_memory(buffer.rows)))
    launches = [bind.actor()]
    if state.critic is not None:
        launches += [bind.chain(), bind.target_q(), bind.critic(), bind.gradients("critic"), bind.update("critic")]
        launches += [bind.advantage_q()]
    join = len(launches)
    launches += [bind.advantage(), bind.gradients("actor"), bind.update("actor")]
    stream = torch.cuda.Stream() if buffer.rows.is_cuda and state.critic is not None else None
    return FusedStep(tuple(launches), join, bind.refresh, bind.scratch, stream)


class Binding:
    """The tensors of a step, and one method for each launch, which binds its kernel to them."""

    def __init__(self, cfg: TrainConfig, state: TrainState, buffer: ReplayBuffer, shapes: Tuning):
        self.cfg, self.state, self.buffer, self.shapes = cfg, state, buffer, shapes
        device = buffer.rows.device
        sizes = buffer.obs_dim, buffer.action_dim, cfg.hidden
        self.nets: dict[str, tuple[Net, int]] = {"actor": (state.actor, 1)}  # by name: its buffers, its heads
        self.saved: dict[str, Saved] = {"actor": actor_saved(*sizes)}
        layouts = {"actor": actor_layout(*sizes)}
        if state.critic is not None:
            self.nets["critic"], self.saved["critic"] = (state.critic, 2), critic_saved(*sizes)
            layouts["critic"] = critic_layout(*sizes)
        hidden_weights_at = {name: layout.places["mlp1.w"][0] for name, layout in layouts.items()}
        self.operands = {
            f"{name}.{part}": Operands.of(getattr(net, part), cfg.hidden, hidden_weights_at[name], cfg.precision)
            for name, (net, _) in self.nets.items()
            for part in ("param", "ema")
        }
        self.tables = {
            name: torch.tensor(saved.tiles(layouts[name].places, shapes.tile), dtype=torch.int32, device=device)
            for name, saved in self.saved.items()
        }
        self.next_rows = cfg.batch_size * updates.backup_samples(cfg)
        self.chain_rows = self.next_rows + cfg.batch_size * cfg.value_samples
        self.times = equations.schedule(cfg.steps, *grid_steps(cfg), cfg.sigma_min, cfg.sigma_max, cfg.rho, device)
        self.grid = equations.sampling_grid(cfg.sampling_steps, cfg.sigma_min, cfg.sigma_max, cfg.rho, device)
        keys_S2 = seed_keys(member_seeds(cfg), device)
        self.seed = keys_S2[:, 0] | (keys_S2[:, 1] << 32)
        self.eta = torch.tensor(member_values(cfg, "eta"), device=device)
        self.lr = torch.tensor(member_values(cfg, "lr"), device=device)
        self.scratch = self._scratch(device)

    def refresh(self) -> None:
        """Rewrite the operand copies from the state."""
        for operands in self.operands.values():
            operands.refresh()

    def actor(self) -> Launch:
        """Both losses of Eq. 17 and 18 and the gradient back through the activations."""
        cfg, ema = self.cfg, self.operands["actor.ema"].args()
        return self._network(
            "actor", gtp_actor, (2 * blocks(cfg.batch_size, self.shapes.rows), cfg.seeds), "actor.param",
            rows_ptr=self.buffer.rows, seed_ptr=self.seed, step_ptr=self.state.step,
            points_ptr=self.times.points, grid_ptr=self.times.grid,
            ema_ptr=ema["param_ptr"], ema1_ptr=ema["w1_ptr"], ema2_ptr=ema["w2_ptr"],
            act_ptr=self.scratch["actor.acts"], slope_ptr=self.scratch["actor.slopes"],
            loss_ptr=self.scratch["losses"], size=self.buffer.size, stage_length=self.times.stage_length,
            sigma_min=cfg.sigma_min, sigma_data=cfg.sigma_data, lambda_flow=cfg.lambda_flow, BATCH=cfg.batch_size,
            COLUMNS=self.saved["actor"].width, X=self.saved["actor"].inputs,
            STAGES_OF_N=len(self.times.points), WIDTH=self.times.width, STABLE=cfg.weighting == "stable",
            INST_WEIGHT_CAP=equations.INST_WEIGHT_CAP, AP=padded(self.buffer.action_dim),
            stages=self.shapes.actor_stages,
        )  # fmt: skip

    def chain(self) -> Launch:
        """The EMA actor's actions at o' and at o, and the batch for the launches that follow."""
        cfg = self.cfg
        return self._network(
            "chain", gtp_chain, (blocks(self.chain_rows, self.shapes.rows), cfg.seeds), "actor.ema",
            rows_ptr=self.buffer.rows, noise_ptr=self.buffer.rows, seed_ptr=self.seed, step_ptr=self.state.step,
            grid_ptr=self.grid,
            action_ptr=self.scratch["actions"], batch_ptr=self.scratch["batch"], size=self.buffer.size,
            sigma_min=cfg.sigma_min, sigma_data=cfg.sigma_data, BATCH=cfg.batch_size, NEXT=self.next_rows,
            ROWS=self.chain_rows, REPEAT=1, AP=padded(self.buffer.action_dim), K=cfg.sampling_steps,
            KEEP=self.shapes.keep, FLOW=False, warps=self.shapes.forward_warps,
        )  # fmt: skip

    def target_q(self) -> Launch:
        """The target heads' values at (o', a'); a' are the first of the chain's actions."""
        next_obs_at = self.buffer.obs_dim + self.buffer.action_dim + 2
        return self._heads("critic", "critic.ema", "next_q", self.next_rows, 0, next_obs_at, 0)

    def critic(self) -> Launch:
        """The heads' TD error of Eq. 16 and its gradient back through the activations."""
        cfg = self.cfg
        return self._network(
            "critic", gtp_critic, (blocks(cfg.batch_size, self.shapes.rows), 2, cfg.seeds), "critic.param",
            batch_ptr=self.scratch["batch"], next_q_ptr=self.scratch["next_q"], act_ptr=self.scratch["critic.acts"],
            slope_ptr=self.scratch["critic.slopes"], q_ptr=self.scratch["q"], target_ptr=self.scratch["target"],
            gamma=cfg.gamma, BATCH=cfg.batch_size, SAMPLES=updates.backup_samples(cfg),
            COLUMNS=self.saved["critic"].width, X=self.saved["critic"].inputs,
        )  # fmt: skip

    def gradients(self, name: str) -> Launch:
        """The weight gradients of a network; for the actor each transition counts with its advantage weight."""
        net, heads = self.nets[name]
        weighted = name == "actor" and not self.cfg.bc
        return self._launch(
            name, gtp_gradients, (len(self.tables[name]), self.cfg.seeds * heads),
            act_ptr=self.scratch[f"{name}.acts"], weight_ptr=self.scratch["weights"], table_ptr=self.tables[name],
            grad_ptr=self.scratch[f"{name}.grad"], square_ptr=self.scratch[f"{name}.squares"],
            grad_stride=net.param.shape[1], ROWS=self._kept_rows(name), COLUMNS=self.saved[name].width,
            PERIOD=self.cfg.batch_size if weighted else 0, TILE=self.shapes.tile, BR=self.shapes.tile_rows,
            STAGES=self.shapes.stages, warps=self.shapes.tile_warps,
        )  # fmt: skip

    def update(self, name: str) -> Launch:
        """Adam and the EMA copy. The actor's update ends a step, so it records the metrics and counts the step."""
        cfg, scratch, last = self.cfg, self.scratch, name == "actor"
        net, heads = self.nets[name]
        size, norm = net.param.shape[1], f"{name}_grad_norm"
        param, ema = self.operands[f"{name}.param"], self.operands[f"{name}.ema"]
        names = gtp.metric_names(cfg)
        return self._launch(
            "average" if last else name, gtp_update, (blocks(size, self.shapes.block), cfg.seeds * heads),
            param_ptr=net.param, grad_ptr=scratch[f"{name}.grad"], exp_avg_ptr=net.exp_avg,
            exp_avg_sq_ptr=net.exp_avg_sq, ema_ptr=net.ema, hidden_weights_ptr=param.copies,
            ema_hidden_weights_ptr=ema.copies,
            square_ptr=scratch[f"{name}.squares"], step_ptr=scratch["now"] if last else self.state.step,
            lr_ptr=self.lr, metric_ptr=scratch["metrics"], sum_ptr=self.state.metric_sums_SQ,
            bad_ptr=self.state.first_bad_SQ, count_ptr=self.state.step, largest_norm=cfg.grad_norm,
            rate=1.0 - cfg.ema_decay if last else cfg.tau, total_steps=cfg.steps, SIZE=size, HEADS=heads,
            PARTIALS=heads * len(self.tables[name]), PADDED=padded(heads * len(self.tables[name])),
            NORM=names.index(norm), EVERY=cfg.ema_every if last else 1, START=cfg.ema_start if last else 0,
            COSINE=cfg.lr_schedule == "cosine", RECORD=last, METRICS=len(names),
            METRIC_STRIDE=scratch["metrics"].shape[1], STEP_STRIDE=1 if last else 0,
            HIDDEN_WEIGHTS=param.first, H=cfg.hidden, BETA1=optimizer.BETA1, BETA2=optimizer.BETA2,
            LOG2_BETA1=math.log2(optimizer.BETA1), LOG2_BETA2=math.log2(optimizer.BETA2),
            ADAM_EPS=optimizer.ADAM_EPS, CLIP_EPS=optimizer.CLIP_EPS, BLOCK=self.shapes.block,
        )  # fmt: skip

    def advantage_q(self) -> Launch:
        """The updated heads' values at (o, a) and (o, a_V); a_V are the last of the chain's actions."""
        rows = self.cfg.batch_size * (1 + self.cfg.value_samples)
        first = self.next_rows * self.buffer.action_dim
        return self._heads("advantage", "critic.param", "advantage_q", rows, self.cfg.batch_size, 0, first)

    def advantage(self) -> Launch:
        """The weights of Eq. 14 and the metrics; for BC only the losses."""
        cfg, scratch = self.cfg, self.scratch
        names = gtp.metric_names(replace(cfg, bc=False))  # BC has the first of these; the updates write the norms
        columns = {name.upper(): column for column, name in enumerate(names) if not name.endswith("_grad_norm")}
        return Launch("advantage", gtp_advantage, (cfg.seeds,), {
            "q_ptr": scratch["advantage_q"], "loss_ptr": scratch["losses"], "critic_q_ptr": scratch["q"],
            "target_ptr": scratch["target"], "eta_ptr": self.eta, "step_ptr": self.state.step,
            "weight_ptr": scratch["weights"], "metric_ptr": scratch["metrics"], "now_ptr": scratch["now"],
            "cap": cfg.weight_cap, "lambda_flow": cfg.lambda_flow, "BATCH": cfg.batch_size,
            "SAMPLES": cfg.value_samples, "BC": cfg.bc, "CHUNK": min(1024, padded(cfg.batch_size)),
            "EPS": equations.ADVANTAGE_EPS, "METRIC_STRIDE": scratch["metrics"].shape[1], **columns,
        }, warps=4)  # fmt: skip

    def _heads(self, phase: str, net: str, out: str, rows: int, from_batch: int, obs_at: int, action_at: int) -> Launch:
        """Bind `gtp_heads`; obs_at and action_at are where the first row's operands lie in `batch` and `actions`."""
        batch = self.scratch["batch"].view(-1)
        return self._network(
            phase, gtp_heads, (blocks(rows, self.shapes.rows), 2, self.cfg.seeds), net,
            obs_ptr=batch[obs_at:], batch_action_ptr=batch[self.buffer.obs_dim :],
            action_ptr=self.scratch["actions"].view(-1)[action_at:], q_ptr=self.scratch[out],
            obs_rows=self.cfg.batch_size, action_rows=self.chain_rows, ROWS=rows, FROM_BATCH=from_batch,
            WRAP=self.cfg.batch_size, REPEAT=1, AP=padded(self.buffer.action_dim), warps=self.shapes.forward_warps,
        )  # fmt: skip

    def _network(
        self, phase: str, kernel: object, grid: tuple[int, ...], net: str, stages: int = 0, **args: Any
    ) -> Launch:
        """Bind a kernel that runs the network `net`, with the sizes that all such kernels share."""
        shapes, buffer, stages = self.shapes, self.buffer, stages or self.shapes.stages
        shared = {"D": buffer.obs_dim, "A": buffer.action_dim, "W": buffer.rows.shape[1], "H": self.cfg.hidden}
        shared |= {"BM": shapes.rows, "BN": shapes.units, "STAGES": stages}
        return self._launch(phase, kernel, grid, stages=stages, **self.operands[net].args(), **shared, **args)

    def _launch(
        self, phase: str, kernel: object, grid: tuple[int, ...], warps: int = 0, stages: int = 0, **args: Any
    ) -> Launch:
        """Bind a kernel whose products have the run's precision."""
        args |= {"PREC": self.cfg.precision, "INTERP": INTERPRETED}
        return Launch(phase, kernel, grid, args, warps or self.shapes.warps, stages or self.shapes.stages)

    def _scratch(self, device: torch.device) -> dict[str, Tensor]:
        """Allocate what launches hand to one another."""
        cfg, seeds, rows = self.cfg, self.cfg.seeds, self.cfg.batch_size
        shapes: dict[str, tuple[int, ...]] = {
            "losses": (seeds, 2, rows),
            "weights": (seeds, rows),
            "metrics": (seeds, padded(len(gtp.metric_names(cfg)), 16)),
            "batch": (seeds, rows, self.buffer.rows.shape[1]),
            "actions": (seeds, self.chain_rows, self.buffer.action_dim),
            "next_q": (seeds, 2, self.next_rows),
            "q": (seeds, 2, rows),
            "target": (seeds, rows),
            "advantage_q": (seeds, 2, rows * (1 + cfg.value_samples)),
        }
        for name, (net, heads) in self.nets.items():
            shapes[f"{name}.slopes"] = (seeds * heads, self._kept_rows(name), self.saved[name].slopes)
            shapes[f"{name}.squares"] = (seeds * heads, len(self.tables[name]))
            shapes[f"{name}.grad"] = tuple(net.param.shape)
        # Zeros, because the update reads the padding between the tensors of a gradient row, and nothing writes it.
        scratch = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        scratch["now"] = torch.zeros(seeds, dtype=torch.int64, device=device)
        kind = torch.bfloat16 if cfg.precision == "bf16" else torch.float32
        for name, (_, heads) in self.nets.items():
            shape = seeds * heads, self._kept_rows(name), self.saved[name].width
            scratch[f"{name}.acts"] = torch.zeros(shape, dtype=kind, device=device)
        return scratch

    def _kept_rows(self, name: str) -> int:
        """Return how many rows a network's launch keeps: the actor has a map and a denoiser row for each transition."""
        return self.cfg.batch_size * (2 if name == "actor" else 1)
