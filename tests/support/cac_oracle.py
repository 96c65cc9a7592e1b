"""Consistency-AC a second time, slowly: torch.nn modules, autograd, torch.optim, one seed, float64, no shared product.

It shares with the product only the layout of the initial parameters and the random words of each step.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from gtp_oracle import fill
from torch import Tensor, nn
from torch.nn import functional

from gtp_fast import rng
from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig

SD, SMIN = 0.5, 0.002


def _net(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, hidden), nn.Mish()]
    for _ in range(2):
        layers += [nn.Linear(hidden, hidden), nn.Mish()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs)).double()


class Actor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.t = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16)).double()
        self.mlp = _net(action_dim + 16 + obs_dim, hidden, action_dim)

    def forward(self, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """The consistency map, row by row: x (B, A), t (B,), obs (B, D)."""
        angle = torch.stack([0.25 * t.log() / 10_000 ** (i / 7) for i in range(8)], -1)
        embedded = self.t(torch.cat([angle.sin(), angle.cos()], -1))
        t = t[:, None]
        scaled = x / (t**2 + SD**2).sqrt()
        skip = SD**2 / ((t - SMIN) ** 2 + SD**2)
        out = SD * (t - SMIN) / (t**2 + SD**2).sqrt()
        return skip * x + out * self.mlp(torch.cat([scaled, embedded, obs], -1))


class Trainer:
    """One member's whole training."""

    ACTOR: ClassVar[dict[str, str]] = {"t": "t", "mlp": "mlp"}
    CRITIC: ClassVar[dict[str, str]] = {"mlp": ""}

    def __init__(self, cfg: TrainConfig, data, obs_dim: int, action_dim: int, seed: int):
        self.cfg, self.data, self.seed, self.step, self.action_dim = cfg, data, seed, 0, action_dim
        self.actor_layout = networks.noise_layout(obs_dim, action_dim, cfg.hidden)
        self.critic_layout = networks.critic_layout(obs_dim, action_dim, cfg.hidden)
        self.actor, self.ema = (Actor(obs_dim, action_dim, cfg.hidden) for _ in range(2))
        self.q, self.q_target = (
            nn.ModuleList([_net(obs_dim + action_dim, cfg.hidden, 1) for _ in range(2)]) for _ in range(2)
        )
        heads = networks.init_flat(self.critic_layout, [seed], heads=2, network=1)
        for net in (self.actor, self.ema):
            fill(net, self.ACTOR, networks.init_flat(self.actor_layout, [seed], network=0)[0], self.actor_layout)
        for nets in (self.q, self.q_target):
            for head, net in zip(heads, nets, strict=True):
                fill(net, self.CRITIC, head, self.critic_layout)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=cfg.lr)
        self.critic_adam = torch.optim.Adam(self.q.parameters(), lr=cfg.lr)
        self.heads: list[int] = []  # the head that each step raised

    def _words(self, stream: int, count: int) -> Tensor:
        plan = rng.plan({stream: count}, "cpu")
        return rng.random_bits(plan, rng.seed_keys([self.seed], "cpu"), torch.tensor(self.step))[stream][0]

    def _noise(self, stream: int, rows: int, columns: int) -> Tensor:
        return rng.normals(self._words(stream, rows * -(-columns // 4))[None], rows, columns)[0].double()

    def sample(self, actor: Actor, obs: Tensor, noise: Tensor) -> Tensor:
        steps, high = self.cfg.sampling_steps, self.cfg.sigma_max
        levels = [high - k / (steps - 1) * (high - 2.0) for k in range(steps)] if steps > 1 else [high]
        x = high * noise[:, : self.action_dim]
        for k, t in enumerate(levels):
            if k > 0:
                z = noise[:, k * self.action_dim : (k + 1) * self.action_dim]
                x = x + math.sqrt(t**2 - SMIN**2) * z
            x = actor(x, torch.full((len(x),), t).double(), obs)
        return x.clamp(-1, 1)

    def train_step(self) -> None:
        cfg = self.cfg
        bits = self._words(rng.INDEX, cfg.batch_size)
        index = ((bits[:, 0] * len(self.data.reward_N)) >> 32).numpy()
        obs, action, next_obs = (
            torch.from_numpy(x[index]).double() for x in (self.data.obs_ND, self.data.action_NA, self.data.next_obs_ND)
        )
        if not cfg.bc:
            reward = torch.from_numpy(self.data.reward_N[index]).double()
            going = 1.0 - torch.from_numpy(self.data.terminal_N[index]).double()
            self._critic(obs, action, reward, going, next_obs)
        self._actor(obs, action, bits)
        if self.step >= cfg.ema_start and self.step % cfg.ema_every == 0:
            _towards(self.ema, self.actor, 1 - cfg.ema_decay)
        _towards(self.q_target, self.q, cfg.tau)
        self.step += 1

    def _critic(self, obs: Tensor, action: Tensor, reward: Tensor, going: Tensor, next_obs: Tensor) -> None:
        cfg, samples = self.cfg, 10 if self.cfg.max_q_backup else 1
        with torch.no_grad():
            many = next_obs.repeat(samples, 1)
            noise = self._noise(rng.TARGET_NOISE, len(many), self.action_dim * cfg.sampling_steps)
            inputs = torch.cat([many, self.sample(self.ema, many, noise)], -1)
            best = [q(inputs).view(samples, len(obs)).amax(0) for q in self.q_target]
            y = reward + cfg.gamma * going * torch.minimum(best[0], best[1])
        loss = sum(functional.mse_loss(q(torch.cat([obs, action], -1))[:, 0], y) for q in self.q)
        _descend(loss, self.q, self.critic_adam, cfg.grad_norm)

    def _actor(self, obs: Tensor, action: Tensor, bits: Tensor) -> None:
        cfg = self.cfg
        stage_length = math.floor(cfg.steps / (math.log2(cfg.s1 // cfg.s0) + 1))
        count = min(cfg.s0 * 2 ** (self.step // stage_length), cfg.s1) + 1
        low, high = SMIN ** (1 / cfg.rho), cfg.sigma_max ** (1 / cfg.rho)
        grid = (low + torch.arange(count).double() / (count - 1) * (high - low)) ** cfg.rho
        n = 1 + ((bits[:, 1] * (count - 1)) >> 32)
        t, u = grid[n], grid[n - 1]
        z = self._noise(rng.ACTION_NOISE, len(obs), self.action_dim)
        with torch.no_grad():
            target = self.ema(action + u[:, None] * z, u, obs)
        error = (self.actor(action + t[:, None] * z, t, obs) - target) ** 2
        scale = 100 / (t - u) if cfg.weighting == "stable" else torch.ones_like(t)
        loss = (scale[:, None] * error).mean()
        if not cfg.bc:
            noise = self._noise(rng.VALUE_NOISE, len(obs), self.action_dim * cfg.sampling_steps)
            inputs = torch.cat([obs, self.sample(self.actor, obs, noise)], -1)
            raised = int(bits[0, 3] >> 31)
            self.heads.append(raised)
            other = self.q[1 - raised](inputs).detach().abs().mean()
            loss = loss - cfg.eta * self.q[raised](inputs).mean() / other
        _descend(loss, self.actor, self.actor_adam, cfg.grad_norm)


def _descend(loss, net: nn.Module, adam: torch.optim.Adam, largest: float) -> None:
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), largest)
    adam.step()


def _towards(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        a.data = (1 - rate) * a.data + rate * b.data
