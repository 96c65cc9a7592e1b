"""GTP's variants a second time, slowly: SPEC 8 on top of `gtp_oracle`, float64, derivatives by finite differences."""

from __future__ import annotations

import itertools
import math

import torch
from gtp_oracle import Actor, Trainer, fill, mlp, sinusoids
from torch import Tensor, nn

from gtp_fast import rng
from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig


class FlowActor(Actor):
    """F itself: c_skip = 0, c_out = c_in = 1."""

    def phi(self, x: Tensor, t: Tensor, s: Tensor, obs: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.t(sinusoids(t)), self.s(sinusoids(s)), obs], -1))


def jump(net: Actor, x: Tensor, t: Tensor, s: Tensor, obs: Tensor) -> Tensor:
    """Phi of Eq. 4, row by row."""
    rows = [
        x[i] if t[i] == s[i] else s[i] / t[i] * x[i] + (1 - s[i] / t[i]) * phi
        for i, phi in enumerate(net.phi(x, t, s, obs))
    ]
    return torch.stack(rows)


class VariantTrainer(Trainer):
    """One member's whole training with the variants of the configuration."""

    def __init__(self, cfg: TrainConfig, data, obs_dim: int, action_dim: int, seed: int):
        super().__init__(cfg, data, obs_dim, action_dim, seed)
        if cfg.process == "flow":
            for net in (self.actor, self.ema):
                net.__class__ = FlowActor
        self.value_layout = networks.value_layout(obs_dim, cfg.hidden)
        self.value = mlp(obs_dim, cfg.hidden, 1).double()
        fill(self.value, {"mlp": ""}, networks.init_flat(self.value_layout, [seed], network=2)[0], self.value_layout)
        self.value_adam = torch.optim.Adam(self.value.parameters(), lr=cfg.lr)

    def _weight(self, obs: Tensor, action: Tensor, value_action: Tensor) -> Tensor:
        cfg = self.cfg
        if cfg.actor_loss == "linear-q":
            return torch.ones(len(obs), dtype=torch.float64)
        q_data = self._qmin(obs, action).detach()
        baseline = {"policy": lambda: self._qmin(obs, value_action), "behaviour": q_data.mean}.get(cfg.value)
        advantage = q_data - (baseline or (lambda: self._expectile(obs, q_data)))().detach()
        weight = (cfg.eta * advantage.clamp(min=0) / (advantage.std(correction=0) + 1e-8)).exp()
        weight = weight.clamp(max=cfg.weight_cap)
        return weight / weight.mean() if cfg.weight_norm else weight

    def _qmin(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.minimum(*[q(torch.cat([obs, action], -1))[:, 0] for q in self.q])

    def _expectile(self, obs: Tensor, q_data: Tensor) -> Tensor:
        above = q_data - self.value(obs)[:, 0]
        loss = torch.where(above > 0, self.cfg.expectile, 1 - self.cfg.expectile) * above**2
        self.value_adam.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(self.value.parameters(), self.cfg.grad_norm)
        self.value_adam.step()
        return self.value(obs)[:, 0]

    def _grid(self) -> Tensor:
        cfg = self.cfg
        count = min(cfg.s0 * 2 ** (self.step // int(cfg.steps / (math.log2(cfg.s1 // cfg.s0) + 1))), cfg.s1) + 1
        if cfg.steps_schedule != "doubling":
            count = int(cfg.steps_schedule.split(":")[1]) + 1
        low, high = cfg.sigma_min ** (1 / cfg.rho), cfg.sigma_max ** (1 / cfg.rho)
        return (low + torch.arange(count).double() / (count - 1) * (high - low)) ** cfg.rho

    def _places(self, grid: Tensor, bits: Tensor) -> Tensor:
        if self.cfg.times == "grid":
            return 1 + ((bits * (len(grid) - 1)) >> 32)
        scale = math.sqrt(2) * self.cfg.time_std
        mass = [math.erf((math.log(t) - self.cfg.time_mean) / scale) for t in grid.tolist()]
        share = [(m - mass[0]) / (mass[-1] - mass[0]) for m in mass]
        return torch.tensor([max(i for i, p in enumerate(share) if p <= b / 2**32) + 1 for b in bits.tolist()])

    def _actor(self, obs: Tensor, action: Tensor, bits: Tensor, weight: Tensor) -> None:
        cfg, grid = self.cfg, self._grid()
        n = self._places(grid, bits[:, 1])
        below = [(n - i).clamp(min=0) for i in range(1 + (cfg.solver_steps if cfg.actor_loss == "solver" else 1))]
        j = (bits[:, 2] * (below[-1] + 1)) >> 32
        t, u, s = grid[n], grid[below[-1]], grid[j]
        z = self._noise(rng.ACTION_NOISE, len(obs))

        def noised(time: Tensor) -> Tensor:
            return (1 - time * (cfg.process == "flow"))[:, None] * action + time[:, None] * z

        a_t, target = noised(t), None
        with torch.no_grad():
            if cfg.actor_loss in ("gtp", "consistency", "linear-q"):
                target = jump(self.ema, noised(u), u, s, obs)
            elif cfg.actor_loss == "solver":
                target = jump(self.ema, self._solved(a_t, [grid[i] for i in below], obs), u, s, obs)
            elif cfg.actor_loss == "shortcut":
                u = grid[(n + j) // 2]
                target = jump(self.ema, jump(self.ema, a_t, t, u, obs), u, s, obs)
            elif cfg.actor_loss == "meanflow":
                target = self._average_map(a_t, t, s, action, obs)
        loss = self._sum(a_t, t, u, s, action, obs, target, weight)
        if cfg.actor_loss == "linear-q":
            ema, self.ema = self.ema, self.actor  # the chain of the trained actor
            loss = (
                loss - cfg.lambda_q * self._qmin(obs, self._sample(obs, self._noise(rng.VALUE_NOISE, len(obs)))).mean()
            )
            self.ema = ema
        self.actor_adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), cfg.grad_norm)
        self.actor_adam.step()

    def _sum(self, a_t: Tensor, t: Tensor, u: Tensor, s: Tensor, action, obs, target, weight) -> Tensor:
        cfg, zero = self.cfg, torch.full_like(s, self.cfg.sigma_min)
        w_traj, w_inst = torch.ones_like(t), torch.ones_like(t)
        if cfg.weighting == "stable":
            w_traj = 1 / (t - u)
            if cfg.process == "edm":
                w_inst = ((t**2 + 0.25) / (0.5 * t) ** 2).clamp(max=400)
        total = torch.zeros((), dtype=torch.float64)
        if cfg.actor_loss == "meanflow":
            total = total + (weight * w_inst * (self.actor.phi(a_t, t, s, obs) - target).pow(2).mean(-1)).mean()
        elif target is not None:
            student = jump(self.actor, a_t, t, s, obs)
            if cfg.compare_at_zero:
                student, target = (jump(self.ema, x, s, zero, obs) for x in (student, target))
            total = total + (weight * w_traj * (student - target.detach()).pow(2).mean(-1)).mean()
        if cfg.actor_loss != "consistency":
            inst = (weight * w_inst * (action - self.actor.phi(a_t, t, t, obs)).pow(2).mean(-1)).mean()
            total = total + cfg.lambda_flow * inst
        return total

    def _solved(self, x: Tensor, times: list[Tensor], obs: Tensor) -> Tensor:
        def field(x: Tensor, t: Tensor) -> Tensor:
            return (x - self.ema.phi(x, t, t, obs)) / t[:, None]

        for t, to in itertools.pairwise(times):
            step, slope = (to - t)[:, None], field(x, t)
            if self.cfg.solver == "heun":
                slope = (slope + field(x + step * slope, to)) / 2
            x = x + step * slope
        return x

    def _average_map(self, x: Tensor, t: Tensor, s: Tensor, action: Tensor, obs: Tensor) -> Tensor:
        h = 1e-5 * t
        f = (x - action) / t[:, None]
        ahead = self.actor.phi(x + h[:, None] * f, t + h, s, obs)
        back = self.actor.phi(x - h[:, None] * f, t - h, s, obs)
        slope, ratio = (ahead - back) / (2 * h)[:, None], (s / t)[:, None]
        return ratio * action + (1 - ratio) * self.actor.phi(x, t, s, obs) - (t - s)[:, None] * slope
