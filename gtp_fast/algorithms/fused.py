"""The train step of `gtp` as fused launches, on the same state and from the same random numbers as the eager step.

`FusedStep` lists the launches of one step or of several in order. `Binding` allocates every tensor of a step once, so
a CUDA graph can hold many steps, and binds each kernel to its tensors: one method a launch. What a launch waits for
follows from the tensors that it reads and writes (`gtp_kernels.graph`). Results that a later step replaces have several
slots, which the steps of a graph use in turn, so that a step's chain can run before the step before it has ended.

Legend: S members (seeds), B batch rows, M rows of a parameter buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gtp_kernels.actor import gtp_actor, gtp_teacher
from gtp_kernels.advantage import gtp_advantage, gtp_record
from gtp_kernels.chain import gtp_chain
from gtp_kernels.critic import gtp_critic_backward, gtp_critic_forward, gtp_heads
from gtp_kernels.gradients import gtp_gradients
from gtp_kernels.graph import launch_beside, waits
from gtp_kernels.launch import (
    INTERPRETED,
    LARGEST_OFFSET,
    Launch,
    Operands,
    Saved,
    Tuning,
    actor_saved,
    blocks,
    critic_saved,
    multiprocessors,
    operand_type,
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
from gtp_fast.errors import UsageError
from gtp_fast.profiling import phase
from gtp_fast.rng import seed_keys


@dataclass(frozen=True)
class FusedStep:
    """Train steps: call it for one, with its launches in a row.

    Code that writes the state from outside must call `refresh`, which rewrites the operand copies of the weights.
    """

    bind: Binding
    launches: tuple[Launch, ...]

    def __call__(self) -> None:
        """Launch one step on the current stream."""
        for launch in self.launches:
            with phase(launch.phase):
                launch()

    def of(self, count: int) -> tuple[Launch, ...]:
        """Return the launches of `count` steps in the order of one step after another.

        A single step may begin anywhere. Several begin at a multiple of count: if ema_every divides count, it is known
        which of them move the EMA, and the chains of the others do not wait for it.
        """
        every = self.bind.cfg.ema_every
        known = count % every == 0
        steps = (self.bind.step(k, k == count - 1, not known or k % every == 0) for k in range(count))
        return tuple(launch for step in steps for launch in step)

    def beside(self, count: int) -> Callable[[], None]:
        """Return the function that makes `count` steps, with launches beside each other, to be captured."""
        launches = self.of(count)
        waiting = waits(launches)
        return lambda: launch_beside(launches, waiting)

    def refresh(self) -> None:
        """Rewrite the operand copies from the state."""
        for operands in self.bind.operands.values():
            operands.refresh()


def make_step(cfg: TrainConfig, state: TrainState, buffer: ReplayBuffer, shapes: Tuning | None = None) -> FusedStep:
    """Bind the launches of a train step to a state and a buffer.

    Args: cfg with device and precision resolved; shapes replaces those of `tuned_for`, for measurements and tests.
    Raises: UsageError for sizes that the kernels cannot address.
    """
    shapes = shapes or tuned_for(cfg.hidden, cfg.batch_size, shared_memory(buffer.rows))
    _check_sizes(cfg, buffer, shapes)
    bind = Binding(cfg, state, buffer, shapes)
    return FusedStep(bind, bind.step())


def _check_sizes(cfg: TrainConfig, buffer: ReplayBuffer, shapes: Tuning) -> None:
    """Refuse the two sizes that would overflow 32 bits; every other offset has 64."""
    columns = actor_saved(buffer.obs_dim, buffer.action_dim, cfg.hidden).width
    rows = blocks(2 * cfg.batch_size, shapes.tile_rows) * shapes.tile_rows
    if rows * columns >= LARGEST_OFFSET:
        most = (LARGEST_OFFSET - 1) // columns // shapes.tile_rows * shapes.tile_rows // 2
        raise UsageError(
            f"--batch-size {cfg.batch_size}: the fused step keeps {2 * cfg.batch_size:,} rows of {columns:,} numbers "
            f"for each seed, and its kernels address fewer than 2^31; pass --batch-size {most} or less, or --backend "
            "compiled"
        )
    if buffer.size >= LARGEST_OFFSET:
        raise UsageError(
            f"the data set has {buffer.size:,} transitions, and the fused step draws among fewer than 2^31; pass "
            "--backend compiled"
        )


class Binding:
    """The tensors of a step, and one method for each launch, which binds its kernel to them.

    A method binds the launch of step `state.step + k`; k also chooses the slot.
    """

    def __init__(self, cfg: TrainConfig, state: TrainState, buffer: ReplayBuffer, shapes: Tuning):
        self.cfg, self.state, self.buffer, self.shapes = cfg, state, buffer, shapes
        self.operand = operand_type(cfg.precision)
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
        kept = self._kept(device)
        self.slots = [kept | self._handed_on(device) for _ in range(shapes.slots)]
        self.scratch = self.slots[0]

    def step(self, k: int = 0, last: bool = True, due: bool = True) -> tuple[Launch, ...]:
        """Return the launches of a step. last: it ends what is launched together. due: the EMA may be due."""
        launches = [self.teacher(k), self.actor(k)]
        if self.state.critic is not None:
            launches += [self.chain(k), self.target_q(k), self.critic_forward(k), self.critic_backward(k)]
            launches += [self.gradients("critic", k), self.update("critic", k), self.advantage_q(k)]
        launches += [self.advantage(k), self.gradients("actor", k), self.update("actor", k, due), self.record(k, last)]
        return tuple(launches)

    def slot(self, k: int) -> dict[str, Tensor]:
        """Return the tensors of a step."""
        return self.slots[k % len(self.slots)]

    def teacher(self, k: int = 0) -> Launch:
        """The EMA actor's jump from a_u to s, which Eq. 17 regresses on."""
        return self._network(
            "actor", gtp_teacher, (blocks(self.cfg.batch_size, self.shapes.rows), self.cfg.seeds), "actor.ema",
            target_ptr=self.slot(k)["teacher"], hidden_ptr=self.slot(k)["teacher.hidden"], **self._draws(k),
        )  # fmt: skip

    def actor(self, k: int = 0) -> Launch:
        """Both losses of Eq. 17 and 18 and the gradient back through the activations."""
        cfg, slot = self.cfg, self.slot(k)
        return self._network(
            "actor", gtp_actor, (2 * blocks(cfg.batch_size, self.shapes.rows), cfg.seeds), "actor.param",
            target_ptr=slot["teacher"], act_ptr=slot["actor.acts"], slope_ptr=slot["actor.slopes"],
            loss_ptr=slot["losses"], lambda_flow=cfg.lambda_flow, COLUMNS=self.saved["actor"].width,
            X=self.saved["actor"].inputs, STABLE=cfg.weighting == "stable", INST_WEIGHT_CAP=equations.INST_WEIGHT_CAP,
            **self._draws(k),
        )  # fmt: skip

    def _draws(self, k: int) -> dict[str, Any]:
        """Return what teacher and actor draw a step's transitions, times and noise from."""
        cfg, times = self.cfg, self.times
        return {
            "rows_ptr": self.buffer.rows, "seed_ptr": self.seed, "step_ptr": self.state.step, "offset": k,
            "points_ptr": times.points, "grid_ptr": times.grid, "size": self.buffer.size,
            "stage_length": times.stage_length, "sigma_min": cfg.sigma_min, "sigma_data": cfg.sigma_data,
            "BATCH": cfg.batch_size, "STAGES_OF_N": len(times.points), "WIDTH": times.width,
            "AP": padded(self.buffer.action_dim),
        }  # fmt: skip

    def chain(self, k: int = 0) -> Launch:
        """The EMA actor's actions at o' and at o, and the batch for the launches that follow."""
        cfg, slot = self.cfg, self.slot(k)
        return self._network(
            "chain", gtp_chain, (blocks(self.chain_rows, self.shapes.rows), cfg.seeds), "actor.ema",
            rows_ptr=self.buffer.rows, noise_ptr=None, seed_ptr=self.seed, step_ptr=self.state.step, offset=k,
            grid_ptr=self.grid, action_ptr=slot["actions"], batch_ptr=slot["batch"],
            hidden_ptr=slot["chain.hidden"], size=self.buffer.size, sigma_min=cfg.sigma_min,
            sigma_data=cfg.sigma_data, BATCH=cfg.batch_size, NEXT=self.next_rows, ROWS=self.chain_rows, REPEAT=1,
            AP=padded(self.buffer.action_dim), K=cfg.sampling_steps, KEEP=self.shapes.keep, FLOW=False,
        )  # fmt: skip

    def target_q(self, k: int = 0) -> Launch:
        """The target heads' values at (o', a'); a' are the first of the chain's actions."""
        next_obs_at = self.buffer.obs_dim + self.buffer.action_dim + 2
        return self._heads(k, "critic", "critic.ema", "next_q", self.next_rows, 0, next_obs_at, 0)

    def critic_forward(self, k: int = 0) -> Launch:
        """The heads' values at (o, a), and what the way back needs."""
        slot = self.slot(k)
        return self._critic(gtp_critic_forward, slot, q_ptr=slot["q"])

    def critic_backward(self, k: int = 0) -> Launch:
        """The TD error of Eq. 16 and its gradient back through the activations."""
        slot = self.slot(k)
        return self._critic(
            gtp_critic_backward, slot, q_ptr=slot["q"], next_q_ptr=slot["next_q"], target_ptr=slot["target"],
            gamma=self.cfg.gamma, SAMPLES=updates.backup_samples(self.cfg),
        )  # fmt: skip

    def _critic(self, kernel: object, slot: dict[str, Tensor], **args: Any) -> Launch:
        """Bind a half of the critic's regression."""
        rows, saved = self.cfg.batch_size, self.saved["critic"]
        tile = self._critic_rows(rows)
        return self._network(
            "critic", kernel, (blocks(rows, tile), 2, self.cfg.seeds), "critic.param", BM=tile,
            batch_ptr=slot["batch"], act_ptr=slot["critic.acts"], slope_ptr=slot["critic.slopes"], BATCH=rows,
            COLUMNS=saved.width, X=saved.inputs, **args,
        )  # fmt: skip

    def gradients(self, name: str, k: int = 0) -> Launch:
        """The weight gradients of a network; for the actor each transition counts with its advantage weight."""
        (net, heads), slot = self.nets[name], self.slot(k)
        weighted = name == "actor" and not self.cfg.bc
        return self._launch(
            name, gtp_gradients, (len(self.tables[name]), self.cfg.seeds * heads), self.shapes.tile_warps,
            act_ptr=slot[f"{name}.acts"], weight_ptr=slot["weights"] if weighted else None,
            table_ptr=self.tables[name], grad_ptr=slot[f"{name}.grad"], square_ptr=slot[f"{name}.squares"],
            grad_stride=net.param.shape[1], ROWS=self._kept_rows(name), COLUMNS=self.saved[name].width,
            PERIOD=self.cfg.batch_size if weighted else 0, TILE=self.shapes.tile,
            BR=self.shapes.tile_rows, STAGES=self.shapes.stages,
        )  # fmt: skip

    def update(self, name: str, k: int = 0, due: bool = True) -> Launch:
        """Adam and the EMA copy, which is left as it is unless it may be due."""
        cfg, slot, average = self.cfg, self.slot(k), name == "actor"
        net, heads = self.nets[name]
        size, partials = net.param.shape[1], heads * len(self.tables[name])
        param, ema = self.operands[f"{name}.param"], self.operands[f"{name}.ema"]
        norm_at = gtp.metric_names(cfg).index(f"{name}_grad_norm")
        return self._launch(
            "average" if average else name, gtp_update, (blocks(size, self.shapes.block), cfg.seeds * heads),
            self.shapes.warps,
            param_ptr=net.param, grad_ptr=slot[f"{name}.grad"], exp_avg_ptr=net.exp_avg,
            exp_avg_sq_ptr=net.exp_avg_sq, ema_ptr=net.ema if due else None, hidden_weights_ptr=param.copies,
            ema_hidden_weights_ptr=ema.copies if due else None, square_ptr=slot[f"{name}.squares"],
            step_ptr=self.state.step, offset=k, lr_ptr=self.lr, norm_ptr=slot["metrics"].view(-1)[norm_at:],
            largest_norm=cfg.grad_norm, rate=1.0 - cfg.ema_decay if average else cfg.tau, total_steps=cfg.steps,
            SIZE=size, HEADS=heads, PARTIALS=partials, PADDED=padded(partials),
            EVERY=cfg.ema_every if average else 1, START=cfg.ema_start if average else 0,
            COSINE=cfg.lr_schedule == "cosine", METRIC_STRIDE=slot["metrics"].shape[1],
            HIDDEN_WEIGHTS=param.first, H=cfg.hidden, BETA1=optimizer.BETA1, BETA2=optimizer.BETA2,
            LOG2_BETA1=math.log2(optimizer.BETA1), LOG2_BETA2=math.log2(optimizer.BETA2),
            ADAM_EPS=optimizer.ADAM_EPS, CLIP_EPS=optimizer.CLIP_EPS, BLOCK=self.shapes.block,
        )  # fmt: skip

    def advantage_q(self, k: int = 0) -> Launch:
        """The updated heads' values at (o, a) and (o, a_V); a_V are the last of the chain's actions."""
        rows = self.cfg.batch_size * (1 + self.cfg.value_samples)
        first = self.next_rows * self.buffer.action_dim
        return self._heads(k, "advantage", "critic.param", "advantage_q", rows, self.cfg.batch_size, 0, first)

    def advantage(self, k: int = 0) -> Launch:
        """The weights of Eq. 14 and the metrics; for BC only the losses."""
        cfg, slot = self.cfg, self.slot(k)
        names = gtp.metric_names(replace(cfg, bc=False))  # BC has the first of these; the updates write the norms
        columns = {name.upper(): column for column, name in enumerate(names) if not name.endswith("_grad_norm")}
        guided = {
            "q_ptr": slot["advantage_q"], "critic_q_ptr": slot["q"], "target_ptr": slot["target"],
            "eta_ptr": self.eta, "weight_ptr": slot["weights"],
        }  # fmt: skip
        return Launch("advantage", gtp_advantage, (cfg.seeds,), {
            **(dict.fromkeys(guided) if cfg.bc else guided), "loss_ptr": slot["losses"], "metric_ptr": slot["metrics"],
            "cap": cfg.weight_cap, "lambda_flow": cfg.lambda_flow, "BATCH": cfg.batch_size,
            "SAMPLES": cfg.value_samples, "BC": cfg.bc, "CHUNK": min(1024, padded(cfg.batch_size)),
            "EPS": equations.ADVANTAGE_EPS, "METRIC_STRIDE": slot["metrics"].shape[1], **columns,
        }, warps=4)  # fmt: skip

    def record(self, k: int = 0, last: bool = True) -> Launch:
        """The sums of the metrics; the last of several steps counts them all."""
        state, metrics, members = self.state, self.slot(k)["metrics"], self.cfg.seeds
        return Launch("average", gtp_record, (1,), {
            "metric_ptr": metrics, "sum_ptr": state.metric_sums_SQ, "bad_ptr": state.first_bad_SQ,
            "step_ptr": state.step, "offset": k, "count_ptr": state.step if last else None, "MEMBERS": members,
            "PADDED": padded(members, 1), "METRICS": state.metric_sums_SQ.shape[1],
            "METRIC_STRIDE": metrics.shape[1],
        }, warps=4)  # fmt: skip

    def _heads(
        self, k: int, phase: str, net: str, out: str, rows: int, from_batch: int, obs_at: int, action_at: int
    ) -> Launch:
        """Bind `gtp_heads`; obs_at and action_at are where the first row's operands lie in `batch` and `actions`."""
        slot = self.slot(k)
        batch, tile = slot["batch"].view(-1), self._critic_rows(rows)
        return self._network(
            phase, gtp_heads, (blocks(rows, tile), 2, self.cfg.seeds), net, BM=tile,
            obs_ptr=batch[obs_at:], batch_action_ptr=batch[self.buffer.obs_dim :] if from_batch else None,
            action_ptr=slot["actions"].view(-1)[action_at:], q_ptr=slot[out], hidden_ptr=slot[f"{out}.hidden"],
            obs_rows=self.cfg.batch_size, action_rows=self.chain_rows, ROWS=rows, FROM_BATCH=from_batch,
            WRAP=self.cfg.batch_size, REPEAT=1, AP=padded(self.buffer.action_dim),
        )  # fmt: skip

    def _critic_rows(self, rows: int) -> int:
        return self.shapes.critic_rows(rows, 2 * self.cfg.seeds, multiprocessors(self.buffer.rows))

    def _network(self, phase: str, kernel: object, grid: tuple[int, ...], net: str, **args: Any) -> Launch:
        """Bind a kernel that runs the network `net`, with the sizes that all such kernels share."""
        shapes, buffer = self.shapes, self.buffer
        shared = {"D": buffer.obs_dim, "A": buffer.action_dim, "W": buffer.rows.shape[1], "H": self.cfg.hidden}
        columns = shapes.columns(self.cfg.hidden, self.operand, kernel is gtp_chain)
        shared |= {"BM": shapes.rows, "BK": columns, "STAGES": shapes.stages}
        return self._launch(phase, kernel, grid, shapes.warps, **self.operands[net].args(), **(shared | args))

    def _launch(self, phase: str, kernel: object, grid: tuple[int, ...], warps: int, **args: Any) -> Launch:
        """Bind a kernel whose products have the run's precision."""
        args |= {"PREC": self.cfg.precision, "INTERP": INTERPRETED}
        return Launch(phase, kernel, grid, args, warps, self.shapes.stages)

    def _handed_on(self, device: torch.device) -> dict[str, Tensor]:
        """Allocate a slot: what the launches of a step hand to others that may run after the next step has begun."""
        cfg, seeds, rows = self.cfg, self.cfg.seeds, self.cfg.batch_size
        operands = {
            "teacher.hidden": (seeds, rows, 2 * cfg.hidden),
            "chain.hidden": (seeds, self.chain_rows, 2 * cfg.hidden),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "teacher": (seeds, rows, self.buffer.action_dim),
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
        floats = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        return floats | {
            name: torch.zeros(shape, dtype=self.operand, device=device) for name, shape in operands.items()
        }

    def _kept(self, device: torch.device) -> dict[str, Tensor]:
        """Allocate what is used up before the next step writes it again: activations and gradients."""
        scratch, kind = {}, self.operand
        value_rows = self.cfg.batch_size * (1 + self.cfg.value_samples)
        for name, rows in (("next_q", self.next_rows), ("advantage_q", value_rows)):
            shape = self.cfg.seeds, 2, rows, 2 * self.cfg.hidden
            scratch[f"{name}.hidden"] = torch.zeros(shape, dtype=kind, device=device)
        for name, (net, heads) in self.nets.items():
            rows, saved = (self.cfg.seeds * heads, self._kept_rows(name)), self.saved[name]
            scratch[f"{name}.acts"] = torch.zeros(*rows, saved.width, dtype=kind, device=device)
            scratch[f"{name}.acts"][..., saved.one] = 1.0
            scratch[f"{name}.slopes"] = torch.zeros(*rows, saved.slopes, device=device)
            scratch[f"{name}.squares"] = torch.zeros(rows[0], len(self.tables[name]), device=device)
            # Zeros, because the update reads the padding between the tensors of a row, and nothing writes it.
            scratch[f"{name}.grad"] = torch.zeros_like(net.param)
        return scratch

    def _kept_rows(self, name: str) -> int:
        """Return how many rows a network's launch keeps: the actor has a map and a denoiser row for each transition."""
        return self.cfg.batch_size * (2 if name == "actor" else 1)
