"""Every algorithm a second time, slowly, each in its own words: its networks and its losses; see `oracle.py`."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial
from typing import Any

import torch
from oracle import SIGMA_DATA, SIGMA_MIN, Trainer, lowest, mlp, sinusoids, time_embedding, values
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import mse_loss

from gtp_fast import rng
from gtp_fast.config import TrainConfig


class GtpActor(nn.Module):
    """The network of Eq. 4 with EDM's scalings; a flow has c_skip = 0 and c_out = c_in = 1."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int, process: str):
        super().__init__()
        self.t, self.s = time_embedding(), time_embedding()
        self.mlp = mlp(action_dim + 32 + obs_dim, hidden, action_dim)
        self.process = process

    def phi(self, x: Tensor, t: Tensor, s: Tensor, obs: Tensor) -> Tensor:
        embedded = [net(sinusoids(0.25 * time.clamp(min=SIGMA_MIN).log())) for net, time in ((self.t, t), (self.s, s))]
        if self.process == "flow":
            return self.mlp(torch.cat([x, *embedded, obs], -1))
        c_in = 1 / (t**2 + SIGMA_DATA**2).sqrt()
        c_skip, c_out = SIGMA_DATA**2 * c_in**2, t * SIGMA_DATA * c_in
        inputs = torch.cat([c_in[:, None] * x, *embedded, obs], -1)
        return c_skip[:, None] * x + c_out[:, None] * self.mlp(inputs)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, obs: Tensor) -> Tensor:
        """Phi of Eq. 4."""
        ratio = (s / t)[:, None]
        return ratio * x + (1 - ratio) * self.phi(x, t, s, obs)


class Gtp(Trainer):
    """The published algorithm and its variants."""

    def __init__(self, cfg: TrainConfig, *rest: Any):
        self.has_value = cfg.value == "expectile"
        super().__init__(cfg, *rest)

    def make_actor(self) -> nn.Module:
        return GtpActor(self.obs_dim, self.action_dim, self.cfg.hidden, self.cfg.process)

    def sample(self, actor: GtpActor, obs: Tensor, z: Tensor) -> Tensor:
        times = self.times(self.cfg.sampling_steps + 1).flip(0)
        times[-1] = 0.0
        x = self.cfg.sigma_max * z
        for t, s in itertools.pairwise(times):
            x = actor.jump(x, t.expand(len(x)), s.expand(len(x)), obs)
        return x.clamp(-1, 1)

    def weight(self, obs: Tensor, action: Tensor) -> Tensor:
        cfg = self.cfg
        if cfg.bc or cfg.actor_loss == "linear-q":
            return torch.ones(len(obs), dtype=torch.float64)
        q = lowest(self.critic.heads, obs, action).detach()
        advantage = (q - self.baseline(obs, q)).detach()
        weight = (cfg.eta * advantage.clamp(min=0) / (advantage.std(correction=0) + 1e-8)).exp()
        weight = weight.clamp(max=cfg.weight_cap)
        return weight / weight.mean() if cfg.weight_norm else weight

    def baseline(self, obs: Tensor, q: Tensor) -> Tensor:
        if self.cfg.value == "behaviour":
            return q.mean()
        if self.cfg.value == "expectile":
            return self.raised_value(obs, q)
        with torch.no_grad():  # of the actor before its step
            return lowest(self.critic.heads, obs, self.sample(self.ema, obs, self.noise(rng.VALUE_NOISE, len(obs))))

    def places(self, grid: Tensor, bits: Tensor) -> Tensor:
        """Return n, the place of t."""
        if self.cfg.times == "grid":
            return 1 + ((bits * (len(grid) - 1)) >> 32)
        scale = math.sqrt(2) * self.cfg.time_std
        mass = [math.erf((math.log(t) - self.cfg.time_mean) / scale) for t in grid.tolist()]
        share = [(m - mass[0]) / (mass[-1] - mass[0]) for m in mass]
        return torch.tensor([max(i for i, p in enumerate(share) if p <= b / 2**32) + 1 for b in bits.tolist()])

    def actor_loss(self, obs: Tensor, action: Tensor, bits: Tensor) -> Tensor:
        cfg, grid = self.cfg, self.grid()
        n = self.places(grid, bits[:, 1])
        below = [(n - i).clamp(min=0) for i in range(1 + (cfg.solver_steps if cfg.actor_loss == "solver" else 1))]
        j = (bits[:, 2] * (below[-1] + 1)) >> 32
        t, u, s = grid[n], grid[below[-1]], grid[j]
        z = self.noise(rng.ACTION_NOISE, len(obs))

        def noised(time: Tensor) -> Tensor:
            return (1 - time * (cfg.process == "flow"))[:, None] * action + time[:, None] * z

        a_t, target = noised(t), None
        with torch.no_grad():
            if cfg.actor_loss in ("gtp", "consistency", "linear-q"):
                target = self.ema.jump(noised(u), u, s, obs)
            elif cfg.actor_loss == "solver":
                target = self.ema.jump(self.solved(a_t, [grid[i] for i in below], obs), u, s, obs)
            elif cfg.actor_loss == "shortcut":
                u = grid[(n + j) // 2]
                target = self.ema.jump(self.ema.jump(a_t, t, u, obs), u, s, obs)
            elif cfg.actor_loss == "meanflow":
                target = self.average_map(a_t, t, s, action, obs)
        loss = self.both_losses(a_t, (t, u, s), action, obs, target)
        if cfg.actor_loss == "linear-q":
            drawn = self.sample(self.actor, obs, self.noise(rng.VALUE_NOISE, len(obs)))
            loss = loss - cfg.lambda_q * lowest(self.critic.heads, obs, drawn).mean()
        return loss

    def both_losses(self, a_t: Tensor, times: tuple[Tensor, ...], action, obs, target) -> Tensor:
        """Eq. 17 and 18 with their weights, as far as the variant has them."""
        cfg, (t, u, s), weight = self.cfg, times, self.weight(obs, action)
        w_traj, w_inst = torch.ones_like(t), torch.ones_like(t)
        if cfg.weighting == "stable":
            w_traj = 1 / (t - u)
            if cfg.process == "edm":
                w_inst = ((t**2 + 0.25) / (0.5 * t) ** 2).clamp(max=400)
        total = torch.zeros((), dtype=torch.float64)
        if cfg.actor_loss == "meanflow":
            total = total + (weight * w_inst * (self.actor.phi(a_t, t, s, obs) - target).pow(2).mean(-1)).mean()
        elif target is not None:
            student, zero = self.actor.jump(a_t, t, s, obs), torch.full_like(s, cfg.sigma_min)
            if cfg.compare_at_zero:
                student, target = (self.ema.jump(x, s, zero, obs) for x in (student, target))
            total = total + (weight * w_traj * (student - target.detach()).pow(2).mean(-1)).mean()
        if cfg.actor_loss != "consistency":
            inst = (weight * w_inst * (action - self.actor.phi(a_t, t, t, obs)).pow(2).mean(-1)).mean()
            total = total + cfg.lambda_flow * inst
        return total

    def solved(self, x: Tensor, times: list[Tensor], obs: Tensor) -> Tensor:
        def field(x: Tensor, t: Tensor) -> Tensor:
            return (x - self.ema.phi(x, t, t, obs)) / t[:, None]

        for t, to in itertools.pairwise(times):
            step, slope = (to - t)[:, None], field(x, t)
            if self.cfg.solver == "heun":
                slope = (slope + field(x + step * slope, to)) / 2
            x = x + step * slope
        return x

    def average_map(self, x: Tensor, t: Tensor, s: Tensor, action: Tensor, obs: Tensor) -> Tensor:
        h = 1e-5 * t
        f = (x - action) / t[:, None]
        ahead = self.actor.phi(x + h[:, None] * f, t + h, s, obs)
        back = self.actor.phi(x - h[:, None] * f, t - h, s, obs)
        slope, ratio = (ahead - back) / (2 * h)[:, None], (s / t)[:, None]
        return ratio * action + (1 - ratio) * self.actor.phi(x, t, s, obs) - (t - s)[:, None] * slope


class NoiseActor(nn.Module):
    """A network of an action, one time and an observation, for CAC and DQL."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.t, self.mlp = time_embedding(), mlp(action_dim + 16 + obs_dim, hidden, action_dim)

    def forward(self, x: Tensor, angle: Tensor, obs: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.t(sinusoids(angle)), obs], -1))


class Cac(Trainer):
    def make_actor(self) -> nn.Module:
        self.noises = self.cfg.sampling_steps
        return NoiseActor(self.obs_dim, self.action_dim, self.cfg.hidden)

    @staticmethod
    def consistency(actor: NoiseActor, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """Return the consistency map: x (B, A), t (B,), obs (B, D)."""
        above = (t - SIGMA_MIN)[:, None]
        norm = (t**2 + SIGMA_DATA**2).sqrt()[:, None]
        skip, out = SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2), SIGMA_DATA * above / norm
        return skip * x + out * actor(x / norm, 0.25 * t.log(), obs)

    def sample(self, actor: NoiseActor, obs: Tensor, z: Tensor) -> Tensor:
        steps, high = self.cfg.sampling_steps, self.cfg.sigma_max
        levels = [high - k / (steps - 1) * (high - 2.0) for k in range(steps)] if steps > 1 else [high]
        draws = z.split(self.action_dim, -1)
        x = high * draws[0]
        for k, t in enumerate(levels):
            if k > 0:
                x = x + math.sqrt(t**2 - SIGMA_MIN**2) * draws[k]
            x = self.consistency(actor, x, torch.full((len(x),), t).double(), obs)
        return x.clamp(-1, 1)

    def actor_loss(self, obs: Tensor, action: Tensor, bits: Tensor) -> Tensor:
        cfg, grid = self.cfg, self.grid()
        n = 1 + ((bits[:, 1] * (len(grid) - 1)) >> 32)
        t, u, z = grid[n], grid[n - 1], self.noise(rng.ACTION_NOISE, len(obs))
        with torch.no_grad():
            target = self.consistency(self.ema, action + u[:, None] * z, u, obs)
        error = (self.consistency(self.actor, action + t[:, None] * z, t, obs) - target) ** 2
        scale = 100 / (t - u) if cfg.weighting == "stable" else torch.ones_like(t)
        loss = (scale[:, None] * error).mean()
        return loss if cfg.bc else loss - cfg.eta * self.q_gain(obs, bits)


class Dql(Trainer):
    def make_actor(self) -> nn.Module:
        self.noises = steps = self.cfg.sampling_steps
        t = torch.arange(1, steps + 1).double()
        self.alpha = torch.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2)
        self.bar = self.alpha.cumprod(0)
        return NoiseActor(self.obs_dim, self.action_dim, self.cfg.hidden)

    def sample(self, actor: NoiseActor, obs: Tensor, z: Tensor) -> Tensor:
        a, *draws = z.split(self.action_dim, -1)
        for t in reversed(range(self.noises)):
            alpha, bar, before = self.alpha[t], self.bar[t], self.bar[t - 1] if t else torch.tensor(1.0)
            eps = actor(a, torch.full((len(obs),), t).double(), obs)
            start = ((a - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
            a = (before.sqrt() * (1 - alpha) * start + alpha.sqrt() * (1 - before) * a) / (1 - bar)
            if t:
                a = a + ((1 - alpha) * (1 - before) / (1 - bar)).sqrt() * draws.pop(0)
        return a.clamp(-1, 1)

    def actor_loss(self, obs: Tensor, action: Tensor, bits: Tensor) -> Tensor:
        t = (bits[:, 1] * self.noises) >> 32
        bar, eps = self.bar[t][:, None], self.noise(rng.ACTION_NOISE, len(obs))
        loss = mse_loss(self.actor(bar.sqrt() * action + (1 - bar).sqrt() * eps, t.double(), obs), eps)
        return loss if self.cfg.bc else loss - self.cfg.eta * self.q_gain(obs, bits)


class Fql(Trainer):
    """One Adam over the sum of all losses; it acts with the parameters as they are."""

    def network(self, more_inputs: int, outputs: int, normed: bool = False) -> nn.Module:
        inputs = self.obs_dim + self.action_dim + more_inputs
        return mlp(inputs, self.cfg.hidden, outputs, self.cfg.layers, partial(nn.GELU, approximate="tanh"), normed)

    def make_actor(self) -> nn.Module:
        acts = {} if self.cfg.bc else {"one": self.network(0, self.action_dim)}
        return nn.ModuleDict({"flow": self.network(1, self.action_dim)} | acts)

    def make_critic(self) -> nn.Module:
        return self.network(0, 1, normed=True)

    def learn(self, obs: Tensor, action: Tensor, reward: Tensor, going: Tensor, next_obs: Tensor, bits: Tensor) -> None:
        x_0, t = self.noise(rng.ACTION_NOISE, len(obs)), ((bits[:, 1] >> 8).double() / 2**24)[:, None]
        velocity = self.actor["flow"](torch.cat([obs, (1 - t) * x_0 + t * action, t], -1))
        loss = mse_loss(velocity, action - x_0)
        if not self.cfg.bc:
            with torch.no_grad():
                z = self.noise(rng.TARGET_NOISE, len(obs))
                next_action = self.actor["one"](torch.cat([next_obs, z], -1)).clamp(-1, 1)
                next_q = torch.stack(values(self.critic.slow, next_obs, next_action)).mean(0)
                y = reward + self.cfg.gamma * going * next_q
            loss = loss + torch.stack([mse_loss(q, y) for q in values(self.critic.heads, obs, action)]).mean()
            loss = loss + self.policy_loss(obs)
        self.descend(loss, *self.nets)

    def euler(self, obs: Tensor, z: Tensor) -> Tensor:
        for k in range(self.cfg.sampling_steps):
            time = torch.full((len(z), 1), k / self.cfg.sampling_steps, dtype=torch.float64)
            z = z + self.actor["flow"](torch.cat([obs, z, time], -1)) / self.cfg.sampling_steps
        return z

    def policy_loss(self, obs: Tensor) -> Tensor:
        z = self.noise(rng.VALUE_NOISE, len(obs))
        with torch.no_grad():
            taught = self.euler(obs, z).clamp(-1, 1)
        action = self.actor["one"](torch.cat([obs, z], -1))
        frozen = copy.deepcopy(self.critic.heads)
        value = torch.stack(values(frozen, obs, action.clamp(-1, 1))).mean()
        return self.cfg.alpha * mse_loss(action, taught) - value

    def share(self) -> float:
        return 1.0


class GaussianActor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.mean = nn.Sequential(mlp(obs_dim, hidden, action_dim), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, obs: Tensor) -> Independent:
        return Independent(Normal(self.mean(obs), self.log_std.clamp(-5, 2).exp()), 1)


class Iql(Trainer):
    has_value = True

    def make_actor(self) -> nn.Module:
        return GaussianActor(self.obs_dim, self.action_dim, self.cfg.hidden)

    def learn(self, obs: Tensor, action: Tensor, reward: Tensor, going: Tensor, next_obs: Tensor, bits: Tensor) -> None:
        cfg, weight = self.cfg, torch.ones_like(reward)
        if not cfg.bc:
            q = lowest(self.critic.slow, obs, action).detach()
            weight = (cfg.eta * (q - self.raised_value(obs, q))).exp().clamp(max=cfg.weight_cap).detach()
            y = (reward + cfg.gamma * going * self.value.heads[0](next_obs)[:, 0]).detach()
        self.descend(-(weight * self.actor(obs).log_prob(action)).mean(), "actor")
        if not cfg.bc:
            self.regress(obs, action, y)

    def share(self) -> float:
        return 1.0


class Td3bc(Trainer):
    """The actor and all averages move at every second step; cloning has no critic to wait for."""

    def make_actor(self) -> nn.Module:
        return nn.Sequential(mlp(self.obs_dim, self.cfg.hidden, self.action_dim), nn.Tanh())

    def sample(self, actor: nn.Module, obs: Tensor, z: Tensor) -> Tensor:
        return (actor(obs) + (0.2 * z).clamp(-0.5, 0.5)).clamp(-1, 1)

    def actor_loss(self, obs: Tensor, action: Tensor, bits: Tensor) -> Tensor:
        pi = self.actor(obs)
        loss = mse_loss(pi, action)
        if not self.cfg.bc:
            q = values(self.critic.heads, obs, pi)[0]
            loss = loss - self.cfg.alpha * q.mean() / q.abs().mean().detach()
        return loss

    def due(self) -> bool:
        return self.cfg.bc or self.step % 2 == 1

    def share(self) -> float:
        return 1.0 if self.cfg.bc else self.cfg.tau


ORACLES = {"gtp": Gtp, "cac": Cac, "dql": Dql, "fql": Fql, "iql": Iql, "td3bc": Td3bc}
