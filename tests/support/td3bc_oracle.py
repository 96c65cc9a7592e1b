"""TD3+BC a second time, slowly: torch.nn modules, autograd, torch.optim, one seed, float64; a step where it is due.

It shares with the product only the layout of the initial parameters and the random words of each step.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from gtp_oracle import fill, mlp
from torch import Tensor, nn
from torch.nn import functional

from gtp_fast import rng
from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig


def drawn(data, seed: int, step: int, rows: int) -> tuple[Tensor, ...]:
    """Return the batch of a step in float64: obs, action, reward, 1 - terminal, next obs."""
    index = ((words(seed, step, rng.INDEX, rows)[0, :, 0] * len(data.reward_N)) >> 32).numpy()
    going = 1.0 - data.terminal_N
    arrays = data.obs_ND, data.action_NA, data.reward_N, going, data.next_obs_ND
    return tuple(torch.from_numpy(array[index]).double() for array in arrays)


def words(seed: int, step: int, stream: int, count: int) -> Tensor:
    plan = rng.plan({stream: count}, "cpu")
    return rng.random_bits(plan, rng.seed_keys([seed], "cpu"), torch.tensor(step))[stream]


def twin(layout: networks.Layout, seed: int, inputs: int, hidden: int) -> nn.ModuleList:
    """Return both heads of a critic as they start."""
    heads = nn.ModuleList([mlp(inputs, hidden, 1).double() for _ in range(2)])
    for net, flat in zip(heads, networks.init_flat(layout, [seed], heads=2, network=1), strict=True):
        fill(net, {"mlp": ""}, flat, layout)
    return heads


def descend(loss: Tensor, net: nn.Module, adam: torch.optim.Adam, largest: float) -> None:
    adam.zero_grad()
    loss.backward()
    if largest:
        nn.utils.clip_grad_norm_(net.parameters(), largest)
    adam.step()


def towards(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        a.data = (1 - rate) * a.data + rate * b.data


class Trainer:
    """One member's whole training."""

    MLP: ClassVar[dict[str, str]] = {"mlp": ""}

    def __init__(self, cfg: TrainConfig, data, obs_dim: int, action_dim: int, seed: int):
        self.cfg, self.data, self.seed, self.step = cfg, data, seed, 0
        self.actor_layout = networks.policy_layout(obs_dim, action_dim, cfg.hidden)
        self.critic_layout = networks.critic_layout(obs_dim, action_dim, cfg.hidden)
        self.actor, self.actor_target = (
            nn.Sequential(mlp(obs_dim, cfg.hidden, action_dim), nn.Tanh()).double() for _ in range(2)
        )
        for net in (self.actor, self.actor_target):
            fill(net, self.MLP, networks.init_flat(self.actor_layout, [seed], network=0)[0], self.actor_layout)
        self.q, self.q_target = (twin(self.critic_layout, seed, obs_dim + action_dim, cfg.hidden) for _ in range(2))
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=cfg.lr)
        self.critic_adam = torch.optim.Adam(self.q.parameters(), lr=cfg.lr)

    def train_step(self) -> None:
        cfg = self.cfg
        obs, action, reward, going, next_obs = drawn(self.data, self.seed, self.step, cfg.batch_size)
        if cfg.bc:
            descend(functional.mse_loss(self.actor(obs), action), self.actor, self.actor_adam, cfg.grad_norm)
            towards(self.actor_target, self.actor, 1.0)
        else:
            self._critic(obs, action, reward, going, next_obs)
            if self.step % 2 == 1:
                pi = self.actor(obs)
                q = self.q[0](torch.cat([obs, pi], -1))
                loss = -cfg.alpha / q.abs().mean().detach() * q.mean() + functional.mse_loss(pi, action)
                descend(loss, self.actor, self.actor_adam, cfg.grad_norm)
                towards(self.actor_target, self.actor, cfg.tau)
                towards(self.q_target, self.q, cfg.tau)
        self.step += 1

    def _critic(self, obs: Tensor, action: Tensor, reward: Tensor, going: Tensor, next_obs: Tensor) -> None:
        rows, columns = action.shape
        numbers = words(self.seed, self.step, rng.TARGET_NOISE, rows * -(-columns // 4))
        with torch.no_grad():
            noise = (0.2 * rng.normals(numbers, rows, columns)[0].double()).clamp(-0.5, 0.5)
            inputs = torch.cat([next_obs, (self.actor_target(next_obs) + noise).clamp(-1, 1)], -1)
            y = reward + self.cfg.gamma * going * torch.minimum(*[q(inputs)[:, 0] for q in self.q_target])
        found = [q(torch.cat([obs, action], -1))[:, 0] for q in self.q]
        loss = functional.mse_loss(found[0], y) + functional.mse_loss(found[1], y)
        descend(loss, self.q, self.critic_adam, self.cfg.grad_norm)
