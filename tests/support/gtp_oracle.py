"""GTP a second time, slowly: torch.nn modules, autograd, torch.optim and the paper's formulas, one seed, float64.

It shares with the product only the layout of the initial parameters and the random words of each step.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtp_fast import rng
from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig


class Actor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.t = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.s = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.mlp = mlp(action_dim + 32 + obs_dim, hidden, action_dim)

    def phi(self, x: Tensor, t: Tensor, s: Tensor, obs: Tensor) -> Tensor:
        c_in = 1 / (t**2 + 0.25).sqrt()
        inputs = [c_in[:, None] * x, self.t(sinusoids(t)), self.s(sinusoids(s)), obs]
        c_skip, c_out = 0.25 / (t**2 + 0.25), t * 0.5 * c_in
        return c_skip[:, None] * x + c_out[:, None] * self.mlp(torch.cat(inputs, -1))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return three hidden layers with Mish, and a linear one."""
    widths = [inputs, hidden, hidden, hidden, outputs]
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.Mish()]
    return nn.Sequential(*layers[:-1])


def sinusoids(time: Tensor) -> Tensor:
    frequency = torch.tensor([10_000 ** (-i / 7) for i in range(8)], dtype=torch.float64)
    angle = 0.25 * time.clamp(min=0.002).log()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def fill(module: nn.Module, prefixes: dict[str, str], flat: Tensor, layout: networks.Layout) -> None:
    """Copy a row of a flat buffer into modules; `prefixes` maps names of the layout to submodules."""
    views = networks.views(flat[None].double(), layout)
    for ours, theirs in prefixes.items():
        linears = [m for m in module.get_submodule(theirs).modules() if isinstance(m, nn.Linear)]
        for i, linear in enumerate(linears):
            linear.weight.data = views[f"{ours}{i}.w"][0].T.clone()
            linear.bias.data = views[f"{ours}{i}.b"][0, 0].clone()


def flatten(module: nn.Module, prefixes: dict[str, str], layout: networks.Layout) -> Tensor:
    """Return the modules' parameters in the layout, float64 (size,)."""
    flat = torch.zeros(1, layout.size, dtype=torch.float64)
    views = networks.views(flat, layout)
    for ours, theirs in prefixes.items():
        linears = [m for m in module.get_submodule(theirs).modules() if isinstance(m, nn.Linear)]
        for i, linear in enumerate(linears):
            views[f"{ours}{i}.w"][0].copy_(linear.weight.data.T)
            views[f"{ours}{i}.b"][0, 0].copy_(linear.bias.data)
    return flat[0]


class Trainer:
    """One member's whole training, by the book."""

    ACTOR: ClassVar[dict[str, str]] = {"t": "t", "s": "s", "mlp": "mlp"}
    CRITIC: ClassVar[dict[str, str]] = {"mlp": ""}

    def __init__(self, cfg: TrainConfig, data, obs_dim: int, action_dim: int, seed: int):
        self.cfg, self.data, self.seed, self.step = cfg, data, seed, 0
        self.actor_layout = networks.actor_layout(obs_dim, action_dim, cfg.hidden)
        self.critic_layout = networks.critic_layout(obs_dim, action_dim, cfg.hidden)
        actor_flat = networks.init_flat(self.actor_layout, [seed], network=0)[0]
        critic_flat = networks.init_flat(self.critic_layout, [seed], heads=2, network=1)
        self.actor, self.ema = (Actor(obs_dim, action_dim, cfg.hidden).double() for _ in range(2))
        for net in (self.actor, self.ema):
            fill(net, self.ACTOR, actor_flat, self.actor_layout)
        self.q, self.q_target = (
            nn.ModuleList([mlp(obs_dim + action_dim, cfg.hidden, 1).double() for _ in range(2)]) for _ in range(2)
        )
        for nets in (self.q, self.q_target):
            for head, net in enumerate(nets):
                fill(net, self.CRITIC, critic_flat[head], self.critic_layout)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=cfg.lr)
        self.critic_adam = torch.optim.Adam(self.q.parameters(), lr=cfg.lr)
        self.action_dim = action_dim

    def _words(self, stream: int, count: int) -> Tensor:
        plan = rng.plan({stream: count}, "cpu")
        return rng.random_bits(plan, rng.seed_keys([self.seed], "cpu"), torch.tensor(self.step))[stream]

    def _noise(self, stream: int, rows: int) -> Tensor:
        count = rng.counters_for_normals(rows, self.action_dim)
        return rng.normals(self._words(stream, count), rows, self.action_dim)[0].double()

    def _sample(self, obs: Tensor, z: Tensor) -> Tensor:
        cfg = self.cfg
        low, high = cfg.sigma_min ** (1 / cfg.rho), cfg.sigma_max ** (1 / cfg.rho)
        grid = [(low + i / cfg.sampling_steps * (high - low)) ** cfg.rho for i in range(cfg.sampling_steps, 0, -1)]
        x = cfg.sigma_max * z
        for t, s in zip(grid, [*grid[1:], 0.0], strict=True):
            time, to = torch.full((len(x),), t).double(), torch.full((len(x),), s).double()
            x = (s / t) * x + (1 - s / t) * self.ema.phi(x, time, to, obs)
        return x.clamp(-1, 1)

    def train_step(self) -> None:
        cfg, rows = self.cfg, self.cfg.batch_size
        bits = self._words(rng.INDEX, rows)[0]
        index = ((bits[:, 0] * len(self.data.reward_N)) >> 32).numpy()
        obs, action, next_obs = (
            torch.from_numpy(x[index]).double() for x in (self.data.obs_ND, self.data.action_NA, self.data.next_obs_ND)
        )
        reward = torch.from_numpy(self.data.reward_N[index]).double()
        going = 1.0 - torch.from_numpy(self.data.terminal_N[index]).double()
        weight = torch.ones(rows, dtype=torch.float64)
        if not cfg.bc:
            weight = self._critic(obs, action, reward, going, next_obs)
        self._actor(obs, action, bits, weight)
        if self.step >= cfg.ema_start and self.step % cfg.ema_every == 0:
            for slow, fast in zip(self.ema.parameters(), self.actor.parameters(), strict=True):
                slow.data = cfg.ema_decay * slow.data + (1 - cfg.ema_decay) * fast.data
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.data = (1 - cfg.tau) * slow.data + cfg.tau * fast.data
        self.step += 1

    def _critic(self, obs: Tensor, action: Tensor, reward: Tensor, going: Tensor, next_obs: Tensor) -> Tensor:
        cfg, rows = self.cfg, self.cfg.batch_size
        samples = 10 if cfg.max_q_backup else 1
        with torch.no_grad():
            many = next_obs.repeat(samples, 1)
            next_action = self._sample(many, self._noise(rng.TARGET_NOISE, rows * samples))
            value_action = self._sample(obs, self._noise(rng.VALUE_NOISE, rows))
            per_head = [q(torch.cat([many, next_action], -1)).view(samples, rows).amax(0) for q in self.q_target]
            y = reward + cfg.gamma * going * torch.minimum(*per_head)
        loss = sum(functional.mse_loss(q(torch.cat([obs, action], -1))[:, 0], y) for q in self.q)
        self.critic_adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.q.parameters(), cfg.grad_norm)
        self.critic_adam.step()
        return self._weight(obs, action, value_action)

    def _weight(self, obs: Tensor, action: Tensor, value_action: Tensor) -> Tensor:
        cfg = self.cfg
        with torch.no_grad():
            q_data = torch.minimum(*[q(torch.cat([obs, action], -1))[:, 0] for q in self.q])
            q_policy = torch.minimum(*[q(torch.cat([obs, value_action], -1))[:, 0] for q in self.q])
            advantage = q_data - q_policy
            weight = (cfg.eta * advantage.clamp(min=0) / (advantage.std(correction=0) + 1e-8)).exp()
            return weight.clamp(max=cfg.weight_cap)

    def _actor(self, obs: Tensor, action: Tensor, bits: Tensor, weight: Tensor) -> None:
        cfg = self.cfg
        stage = cfg.s0 * 2 ** int(self.step / (cfg.steps / (torch.tensor(cfg.s1 / cfg.s0).log2().item() + 1)))
        count = min(stage, cfg.s1) + 1
        low, high = cfg.sigma_min ** (1 / cfg.rho), cfg.sigma_max ** (1 / cfg.rho)
        grid = (low + torch.arange(count).double() / (count - 1) * (high - low)) ** cfg.rho
        n = 1 + ((bits[:, 1] * (count - 1)) >> 32)
        t, u, s = grid[n], grid[n - 1], grid[(bits[:, 2] * n) >> 32]
        z = self._noise(rng.ACTION_NOISE, len(obs))
        a_t, a_u = action + t[:, None] * z, action + u[:, None] * z
        with torch.no_grad():
            ratio = (s / u)[:, None]
            target = ratio * a_u + (1 - ratio) * self.ema.phi(a_u, u, s, obs)
        ratio = (s / t)[:, None]
        student = ratio * a_t + (1 - ratio) * self.actor.phi(a_t, t, s, obs)
        denoised = self.actor.phi(a_t, t, t, obs)
        w_traj, w_inst = torch.ones_like(t), torch.ones_like(t)
        if cfg.weighting == "stable":
            w_traj, w_inst = 1 / (t - u), ((t**2 + 0.25) / (0.5 * t) ** 2).clamp(max=400)
        traj = (weight * w_traj * (student - target).pow(2).mean(-1)).mean()
        inst = (weight * w_inst * (action - denoised).pow(2).mean(-1)).mean()
        self.actor_adam.zero_grad()
        (traj + cfg.lambda_flow * inst).backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), cfg.grad_norm)
        self.actor_adam.step()
