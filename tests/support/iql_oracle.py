"""Implicit Q-learning a second time, slowly: torch.nn modules, autograd, torch.distributions, one seed, float64.

It shares with the product only the layout of the initial parameters and the random words of each step.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from gtp_oracle import fill, flatten, mlp
from td3bc_oracle import descend, drawn, towards, twin
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig


class Gaussian(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.mean = nn.Sequential(mlp(obs_dim, hidden, action_dim), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, obs: Tensor) -> Independent:
        return Independent(Normal(self.mean(obs), self.log_std.clamp(-5, 2).exp()), 1)


class Trainer:
    """One member's whole training."""

    MLP: ClassVar[dict[str, str]] = {"mlp": ""}

    def __init__(self, cfg: TrainConfig, data, obs_dim: int, action_dim: int, seed: int):
        self.cfg, self.data, self.seed, self.step = cfg, data, seed, 0
        self.actor_layout = networks.policy_layout(obs_dim, action_dim, cfg.hidden, gaussian=True)
        self.critic_layout = networks.critic_layout(obs_dim, action_dim, cfg.hidden)
        self.value_layout = networks.value_layout(obs_dim, cfg.hidden)
        self.actor = Gaussian(obs_dim, action_dim, cfg.hidden).double()
        self.value = mlp(obs_dim, cfg.hidden, 1).double()
        actor = networks.init_flat(self.actor_layout, [seed], network=0)[0]
        fill(self.actor.mean, self.MLP, actor, self.actor_layout)
        value = networks.init_flat(self.value_layout, [seed], network=2)[0]
        fill(self.value, self.MLP, value, self.value_layout)
        self.q, self.q_target = (twin(self.critic_layout, seed, obs_dim + action_dim, cfg.hidden) for _ in range(2))
        self.adams: dict[nn.Module, torch.optim.Adam] = {
            net: torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (self.actor, self.value, self.q)
        }  # by identity

    def flat_actor(self) -> Tensor:
        flat = flatten(self.actor.mean, self.MLP, self.actor_layout)
        networks.views(flat[None], self.actor_layout)["policy.log_std"][0, 0] = self.actor.log_std.data
        return flat

    def train_step(self) -> None:
        cfg = self.cfg
        obs, action, reward, going, next_obs = drawn(self.data, self.seed, self.step, cfg.batch_size)
        weight = torch.ones_like(reward)
        if not cfg.bc:
            inputs = torch.cat([obs, action], -1)
            q = torch.minimum(*[net(inputs)[:, 0] for net in self.q_target]).detach()
            error = q - self.value(obs)[:, 0]
            self._descend(torch.where(error > 0, cfg.expectile, 1 - cfg.expectile).mul(error**2).mean(), self.value)
            weight = (cfg.eta * (q - self.value(obs)[:, 0])).exp().clamp(max=cfg.weight_cap).detach()
            y = (reward + cfg.gamma * going * self.value(next_obs)[:, 0]).detach()
        for group in self.adams[self.actor].param_groups:
            share = self.step / cfg.steps if cfg.lr_schedule == "cosine" else 0.0
            group["lr"] = cfg.lr * (1 + math.cos(math.pi * share)) / 2
        self._descend(-(weight * self.actor(obs).log_prob(action)).mean(), self.actor)
        if not cfg.bc:
            self._descend(sum(((net(inputs)[:, 0] - y) ** 2).mean() for net in self.q), self.q)
            towards(self.q_target, self.q, cfg.tau)
        self.step += 1

    def _descend(self, loss, net: nn.Module) -> None:
        descend(loss, net, self.adams[net], self.cfg.grad_norm)
