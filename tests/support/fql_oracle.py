"""Flow Q-learning a second time, slowly: torch.nn modules, one Adam over the sum of all losses, one seed, float64.

It shares with the product only the layout of the initial parameters and the random words of each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gtp_fast import rng
from gtp_fast.algorithms import fql, networks
from gtp_fast.config import TrainConfig


def mlp(inputs: int, hidden: int, layers: int, outputs: int, normed: bool = False) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(hidden if i else inputs, hidden), nn.GELU(approximate="tanh")]
        modules += [nn.LayerNorm(hidden, eps=1e-6)] if normed else []
    return nn.Sequential(*modules, nn.Linear(hidden, outputs)).double()


def _named(net: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a network's parameters under the names of the layout, weights turned as there."""
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
    named = {f"{prefix}mlp{i}.w": m.weight.data.T for i, m in enumerate(linears)}
    named |= {f"{prefix}mlp{i}.b": m.bias.data[None] for i, m in enumerate(linears)}
    named |= {f"{prefix}norm{i}.gain": m.weight.data[None] for i, m in enumerate(norms)}
    return named | {f"{prefix}norm{i}.shift": m.bias.data[None] for i, m in enumerate(norms)}


def fill(nets: dict[str, nn.Module], flat: Tensor, layout: networks.Layout) -> None:
    """Copy a row of a flat buffer into networks by the prefixes of their names."""
    views = networks.views(flat[None].double(), layout)
    for prefix, net in nets.items():
        for name, tensor in _named(net, prefix).items():
            tensor.copy_(views[name][0])


def flatten(nets: dict[str, nn.Module], layout: networks.Layout) -> Tensor:
    """Return the networks' parameters in the layout, float64 (size,)."""
    flat = torch.zeros(1, layout.size, dtype=torch.float64)
    views = networks.views(flat, layout)
    named = {name: tensor for prefix, net in nets.items() for name, tensor in _named(net, prefix).items()}
    assert named.keys() == views.keys()
    for name, tensor in named.items():
        views[name][0].copy_(tensor)
    return flat[0]


class Trainer:
    """One member's whole training, by the book."""

    def __init__(self, cfg: TrainConfig, data, obs_dim: int, action_dim: int, seed: int):
        self.cfg, self.data, self.seed, self.step, self.action_dim = cfg, data, seed, 0, action_dim
        size, joint = (cfg.hidden, cfg.layers), obs_dim + action_dim
        self.actors: dict[str, nn.Module] = {"flow.": mlp(joint + 1, *size, action_dim)}
        if not cfg.bc:
            self.actors["one."] = mlp(joint, *size, action_dim)
        self.q, self.q_target = (nn.ModuleList([mlp(joint, *size, 1, normed=True) for _ in range(2)]) for _ in "ab")
        self.actor_layout = fql.actor_layout(cfg, obs_dim, action_dim)
        self.critic_layout = fql.critic_layout(cfg, obs_dim, action_dim)
        fill(self.actors, networks.init_flat(self.actor_layout, [seed], network=0)[0], self.actor_layout)
        heads = networks.init_flat(self.critic_layout, [seed], heads=2, network=1)
        for nets in (self.q, self.q_target):
            for flat, net in zip(heads, nets, strict=True):
                fill({"": net}, flat, self.critic_layout)
        everything = nn.ModuleList([*self.actors.values(), *([] if cfg.bc else self.q)])
        self.adam = torch.optim.Adam(everything.parameters(), lr=cfg.lr)

    def _words(self, stream: int, count: int) -> Tensor:
        plan = rng.plan({stream: count}, "cpu")
        return rng.random_bits(plan, rng.seed_keys([self.seed], "cpu"), torch.tensor(self.step))[stream]

    def _noise(self, stream: int) -> Tensor:
        rows, count = self.cfg.batch_size, rng.counters_for_normals(self.cfg.batch_size, self.action_dim)
        return rng.normals(self._words(stream, count), rows, self.action_dim)[0].double()

    def euler(self, obs: Tensor, z: Tensor) -> Tensor:
        steps = self.cfg.sampling_steps
        for k in range(steps):
            time = torch.full((len(z), 1), k / steps, dtype=torch.float64)
            z = z + self.actors["flow."](torch.cat([obs, z, time], -1)) / steps
        return z

    def train_step(self) -> None:
        cfg, bits = self.cfg, self._words(rng.INDEX, self.cfg.batch_size)[0]
        index = ((bits[:, 0] * len(self.data.reward_N)) >> 32).numpy()
        d = self.data
        columns = d.obs_ND, d.action_NA, d.next_obs_ND, d.reward_N, d.terminal_N
        obs, action, next_obs, reward, terminal = (torch.from_numpy(x[index]).double() for x in columns)
        x_0, t = self._noise(rng.ACTION_NOISE), ((bits[:, 1] >> 8).double() / 2**24)[:, None]
        velocity = self.actors["flow."](torch.cat([obs, (1 - t) * x_0 + t * action, t], -1))
        loss = (velocity - (action - x_0)).pow(2).mean()
        if not cfg.bc:
            loss = loss + self._critic_loss(obs, action, reward, terminal, next_obs) + self._policy_loss(obs)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.data = (1 - cfg.tau) * slow.data + cfg.tau * fast.data
        self.step += 1

    def _critic_loss(self, obs: Tensor, action: Tensor, reward: Tensor, terminal: Tensor, next_obs: Tensor) -> Tensor:
        with torch.no_grad():
            next_action = self.actors["one."](torch.cat([next_obs, self._noise(rng.TARGET_NOISE)], -1)).clamp(-1, 1)
            next_q = torch.stack([q(torch.cat([next_obs, next_action], -1))[:, 0] for q in self.q_target]).mean(0)
            y = reward + self.cfg.gamma * (1 - terminal) * next_q
        return torch.stack([(q(torch.cat([obs, action], -1))[:, 0] - y).pow(2).mean() for q in self.q]).mean()

    def _policy_loss(self, obs: Tensor) -> Tensor:
        z = self._noise(rng.VALUE_NOISE)
        with torch.no_grad():
            taught = self.euler(obs, z).clamp(-1, 1)
        action = self.actors["one."](torch.cat([obs, z], -1))
        self.q.requires_grad_(False)
        value = torch.stack([q(torch.cat([obs, action.clamp(-1, 1)], -1)).mean() for q in self.q]).mean()
        self.q.requires_grad_(True)
        return self.cfg.alpha * (action - taught).pow(2).mean() - value
