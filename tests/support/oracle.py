"""What the slow second implementations share: torch.nn, autograd, torch.optim, one seed, float64; see `oracles.py`.

The tests train the product and an oracle on the same rows and compare all parameters, averages and targets. They share
the layout of the initial parameters and the random words of each step, nothing else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from gtp_fast import algorithms, rng
from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig

SIGMA_DATA, SIGMA_MIN = 0.5, 0.002


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    layers: int = 3,
    activation: Callable[[], nn.Module] = nn.Mish,
    normed: bool = False,
) -> nn.Sequential:
    """Return hidden layers with their activation, and with a layer norm if `normed`, and a linear one."""
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(hidden if i else inputs, hidden), activation()]
        modules += [nn.LayerNorm(hidden, eps=1e-6)] if normed else []
    return nn.Sequential(*modules, nn.Linear(hidden, outputs))


def time_embedding() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))


def sinusoids(angle: Tensor) -> Tensor:
    angles = torch.stack([angle / 10_000 ** (i / 7) for i in range(8)], -1)
    return torch.cat([angles.sin(), angles.cos()], -1)


def parameters(net: nn.Module) -> list[Tensor]:
    """Return a network's parameters in the order and shapes of the layout: linear layers, norms, then its own."""
    owners = [m for kind in (nn.Linear, nn.LayerNorm) for m in net.modules() if isinstance(m, kind)]
    found = [tensor.data for owner in [*owners, net] for tensor in owner.parameters(recurse=False)]
    return [tensor.T if tensor.ndim == 2 else tensor[None] for tensor in found]


class Net:
    """Heads of one shape in training: the parameters, their slow copy, Adam."""

    def __init__(self, make: Callable[[], nn.Module], layout: networks.Layout, flat: Tensor, lr: float):
        self.layout = layout
        self.heads = nn.ModuleList([make() for _ in flat]).double()
        for head, row in zip(self.heads, flat, strict=True):
            for tensor, view in self._beside(head, row.double()):
                tensor.copy_(view)
        self.slow = copy.deepcopy(self.heads)
        self.adam = torch.optim.Adam(self.heads.parameters(), lr)

    def _beside(self, head: nn.Module, row: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return a head's parameters, each with its place in a flat row."""
        places = [view[0] for view in networks.views(row[None], self.layout).values()]
        return list(zip(parameters(head), places, strict=True))

    def average(self, share: float) -> None:
        """Move the slow copy towards the parameters by a share of the way."""
        for slow, fast in zip(self.slow.parameters(), self.heads.parameters(), strict=True):
            slow.data = (1 - share) * slow.data + share * fast.data

    def flat(self, heads: nn.ModuleList) -> Tensor:
        """Return the parameters in the layout, float64 (heads, size)."""
        flat = torch.zeros(len(heads), self.layout.size, dtype=torch.float64)
        for row, head in zip(flat, heads, strict=True):
            for tensor, view in self._beside(head, row):
                view.copy_(tensor)
        return flat


def values(heads: nn.ModuleList, obs: Tensor, action: Tensor) -> list[Tensor]:
    """Return each head's values (B,)."""
    return [head(torch.cat([obs, action], -1))[:, 0] for head in heads]


def lowest(heads: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
    return torch.minimum(*values(heads, obs, action))


class Trainer:
    """One member's training: a batch, the losses of an algorithm, the averages."""

    # What each algorithm adds: its actor, and its loss and its actions from standard normals where `learn` is this one.
    make_actor: Callable[[], nn.Module]
    actor_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    sample: Callable[[Any, Tensor, Tensor], Tensor]
    noises = 1  # draws of A normals that one action takes
    has_value = False

    def __init__(self, cfg: TrainConfig, data: Any, obs_dim: int, action_dim: int, seed: int):
        self.cfg, self.data, self.seed, self.step = cfg, data, seed, 0
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.raised: list[int] = []  # the head that each step's actor raised
        layouts = algorithms.of(cfg).layouts(cfg, obs_dim, action_dim)

        def net(name: str, make: Callable[[], nn.Module], number: int, heads: int = 1) -> Net:
            flat = networks.init_flat(layouts[name], [seed], heads=heads, network=number)
            return Net(make, layouts[name], flat, cfg.lr)

        self.nets = {"actor": net("actor", self.make_actor, 0)}
        if not cfg.bc:
            self.nets["critic"] = self.critic = net("critic", self.make_critic, 1, heads=2)
        if self.has_value and not cfg.bc:
            self.nets["value"] = self.value = net("value", lambda: mlp(obs_dim, cfg.hidden, 1), 2)
        self.actor: Any = self.nets["actor"].heads[0]
        self.ema: Any = self.nets["actor"].slow[0]

    def make_critic(self) -> nn.Module:
        return mlp(self.obs_dim + self.action_dim, self.cfg.hidden, 1)

    def tensors(self) -> dict[str, Tensor]:
        """Return what must agree with the product's tensors of these names, this member's rows."""
        found = {f"{name}.param": net.flat(net.heads) for name, net in self.nets.items()}
        return found | {f"{n}.slow": net.flat(net.slow) for n, net in self.nets.items() if n != "value"}

    def words(self, stream: int, count: int) -> Tensor:
        plan = rng.plan({stream: count}, "cpu")
        return rng.random_bits(plan, rng.seed_keys([self.seed], "cpu"), torch.tensor(self.step))[stream][0]

    def noise(self, stream: int, rows: int, actions: int = 1) -> Tensor:
        """Return standard normals (rows, actions * A)."""
        columns = self.action_dim * actions
        return rng.normals(self.words(stream, rows * -(-columns // 4))[None], rows, columns)[0].double()

    def train_step(self) -> None:
        bits = self.words(rng.INDEX, self.cfg.batch_size)
        index = ((bits[:, 0] * len(self.data.reward_N)) >> 32).numpy()
        d = self.data
        arrays = d.obs_ND, d.action_NA, d.reward_N, 1.0 - d.terminal_N, d.next_obs_ND
        obs, action, *rest = (torch.from_numpy(array[index]).double() for array in arrays)
        self.learn(obs, action, *rest, bits)
        if self.due():
            self.average()
        self.step += 1

    def learn(self, obs: Tensor, action: Tensor, reward: Tensor, going: Tensor, next_obs: Tensor, bits: Tensor) -> None:
        """The critic, where there is one, then the actor."""
        if not self.cfg.bc:
            self.regress(obs, action, self.td_target(reward, going, next_obs))
        if self.due():
            self.descend(self.actor_loss(obs, action, bits), "actor")

    def due(self) -> bool:
        """Whether the actor and the averages move at this step."""
        return True

    def regress(self, obs: Tensor, action: Tensor, y: Tensor) -> None:
        self.descend(sum(mse_loss(q, y) for q in values(self.critic.heads, obs, action)), "critic")

    @torch.no_grad()
    def td_target(self, reward: Tensor, going: Tensor, next_obs: Tensor) -> Tensor:
        """y: the smaller of the target heads, each the largest of ten samples with max_q_backup."""
        samples = 10 if self.cfg.max_q_backup else 1
        many = next_obs.repeat(samples, 1)
        action = self.sample(self.ema, many, self.noise(rng.TARGET_NOISE, len(many), self.noises))
        best = [q.view(samples, -1).amax(0) for q in values(self.critic.slow, many, action)]
        return reward + self.cfg.gamma * going * torch.minimum(*best)

    def raised_value(self, obs: Tensor, q: Tensor) -> Tensor:
        """Move V towards the expectile of q; return it as it is then."""
        above = q - self.value.heads[0](obs)[:, 0]
        weight = torch.where(above > 0, self.cfg.expectile, 1 - self.cfg.expectile)
        self.descend((weight * above**2).mean(), "value")
        return self.value.heads[0](obs)[:, 0]

    def q_gain(self, obs: Tensor, bits: Tensor) -> Tensor:
        """Return the value of one head at sampled actions, over the mean size of the other's: a coin says which."""
        z = self.noise(rng.VALUE_NOISE, len(obs), self.noises)
        q = values(self.critic.heads, obs, self.sample(self.actor, obs, z))
        self.raised.append(int(bits[0, 3] >> 31))
        return q[self.raised[-1]].mean() / q[1 - self.raised[-1]].detach().abs().mean()

    def descend(self, loss: Any, *names: str) -> None:
        """Take a step of Adam down a loss, of several networks at the parameters before any of them moves."""
        for net in self.nets.values():
            net.adam.zero_grad()
        loss.backward()
        for name in names:
            net = self.nets[name]
            if name == "actor" and self.cfg.lr_schedule == "cosine":  # as in IQL; others are not compared with it
                net.adam.param_groups[0]["lr"] = self.cfg.lr * (1 + math.cos(math.pi * self.step / self.cfg.steps)) / 2
            if self.cfg.grad_norm:
                nn.utils.clip_grad_norm_(net.heads.parameters(), self.cfg.grad_norm)
            net.adam.step()

    def average(self) -> None:
        self.nets["actor"].average(self.share())
        if not self.cfg.bc:
            self.critic.average(self.cfg.tau)

    def share(self) -> float:
        """Return how far the actor's slow copy moves at this step."""
        cfg = self.cfg
        return 1 - cfg.ema_decay if self.step >= cfg.ema_start and self.step % cfg.ema_every == 0 else 0.0

    def grid(self) -> Tensor:
        """Return the times of this step's stage, lowest first."""
        cfg = self.cfg
        count = min(cfg.s0 * 2 ** (self.step // int(cfg.steps / (math.log2(cfg.s1 // cfg.s0) + 1))), cfg.s1) + 1
        if cfg.steps_schedule != "doubling":
            count = int(cfg.steps_schedule.split(":")[1]) + 1
        return self.times(count)

    def times(self, count: int) -> Tensor:
        cfg = self.cfg
        low, high = cfg.sigma_min ** (1 / cfg.rho), cfg.sigma_max ** (1 / cfg.rho)
        return (low + torch.arange(count).double() / (count - 1) * (high - low)) ** cfg.rho
