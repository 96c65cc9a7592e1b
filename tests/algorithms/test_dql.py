"""Diffusion-QL against a second, slow implementation in float64, and what every algorithm promises."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_safety import problems_of
from gtp_oracle import fill, flatten, mlp
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config, transitions
from run_cases import tiny
from torch import nn

import gtp_fast
from gtp_fast import rng
from gtp_fast.algorithms import dql
from gtp_fast.algorithms.networks import critic_layout, noise_layout
from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.training.train import train

T = 4


def config(**changes) -> TrainConfig:
    return replace(small_config(), algo="dql", sampling_steps=T, eta=0.7, **changes)


def trained(cfg: TrainConfig, steps: int):
    state = dql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    step = dql.make_step(cfg, state, buffer_of(cfg))
    for _ in range(steps):
        step()
    return state


ACTOR, CRITIC = {"t": "t", "mlp": "mlp"}, {"mlp": ""}  # our names of layers, and the modules below


class Eps(nn.Module):
    """The published network, by its layers."""

    def __init__(self, hidden: int):
        super().__init__()
        self.t = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.mlp = mlp(ACTION_DIM + 16 + OBS_DIM, hidden, ACTION_DIM)

    def forward(self, a, t, obs):
        angle = t.double()[:, None] * torch.exp(torch.arange(8).double() * -(np.log(10_000.0) / 7))
        return self.mlp(torch.cat([a, self.t(torch.cat([angle.sin(), angle.cos()], -1)), obs], -1))


class Slow:
    """One member, one row of the schedule after another, torch's own Adam, in float64."""

    def __init__(self, cfg: TrainConfig, seed: int):
        torch.set_default_dtype(torch.float64)
        self.cfg, self.seed, self.step = cfg, seed, 0
        fresh = dql.init_state(replace(cfg, seed=seed, seeds=1), OBS_DIM, ACTION_DIM, "cpu")
        self.places = noise_layout(OBS_DIM, ACTION_DIM, cfg.hidden), critic_layout(OBS_DIM, ACTION_DIM, cfg.hidden)
        self.actor, self.ema = Eps(cfg.hidden), Eps(cfg.hidden)
        self.q, self.target = ([mlp(OBS_DIM + ACTION_DIM, cfg.hidden, 1) for _ in range(2)] for _ in range(2))
        for net in (self.actor, self.ema):
            fill(net, ACTOR, fresh.actor.param[0], self.places[0])
        for i in range(2 if fresh.critic is not None else 0):
            for heads in (self.q, self.target):
                fill(heads[i], CRITIC, fresh.critic.param[i], self.places[1])
        self.adam = torch.optim.Adam(self.actor.parameters(), cfg.lr)
        self.critic_adam = torch.optim.Adam([p for head in self.q for p in head.parameters()], cfg.lr)
        t = np.arange(1, T + 1)
        self.alpha = np.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2)
        self.bar = np.cumprod(self.alpha)
        torch.set_default_dtype(torch.float32)

    @staticmethod
    def value(head, obs, a):
        return head(torch.cat([obs, a], -1))[:, 0]

    def sample(self, net, obs, z):
        a = z[:, :ACTION_DIM]
        for k, t in enumerate(range(T - 1, -1, -1)):
            bar, before = self.bar[t], self.bar[t - 1] if t else 1.0
            eps = net(a, torch.full((len(obs),), t), obs)
            start = ((a - np.sqrt(1 - bar) * eps) / np.sqrt(bar)).clamp(-1, 1)
            beta = 1 - self.alpha[t]
            mean = np.sqrt(before) * beta / (1 - bar) * start + np.sqrt(self.alpha[t]) * (1 - before) / (1 - bar) * a
            variance = beta * (1 - before) / (1 - bar)
            a = mean + (np.sqrt(variance) * z[:, (k + 1) * ACTION_DIM : (k + 2) * ACTION_DIM] if t else 0.0)
        return a.clamp(-1, 1)

    def draws(self, backup: int):
        rows = self.cfg.batch_size
        counts = {rng.INDEX: rows, rng.ACTION_NOISE: rng.counters_for_normals(rows, ACTION_DIM)}
        counts[rng.TARGET_NOISE] = rng.counters_for_normals(rows * backup, ACTION_DIM * T)
        counts[rng.VALUE_NOISE] = rng.counters_for_normals(rows, ACTION_DIM * T)
        words = rng.random_bits(rng.plan(counts, "cpu"), rng.seed_keys([self.seed], "cpu"), torch.tensor(self.step))
        normals = {s: rng.normals(words[s], r, c)[0].double() for s, r, c in (
            (rng.ACTION_NOISE, rows, ACTION_DIM), (rng.TARGET_NOISE, rows * backup, ACTION_DIM * T),
            (rng.VALUE_NOISE, rows, ACTION_DIM * T))}  # fmt: skip
        return words[rng.INDEX][0], normals

    def train_step(self, data) -> None:
        cfg, backup = self.cfg, 10 if self.cfg.max_q_backup else 1
        bits, z = self.draws(backup)
        index = (bits[:, 0] * len(data.obs_ND)) >> 32
        obs, action, reward, nxt, done = (
            torch.from_numpy(np.asarray(x, dtype=np.float64))[index]
            for x in (data.obs_ND, data.action_NA, data.reward_N, data.next_obs_ND, data.terminal_N)
        )
        if not cfg.bc:
            with torch.no_grad():
                wide = nxt.repeat(backup, 1)
                actions = self.sample(self.ema, wide, z[rng.TARGET_NOISE])
                best = [self.value(head, wide, actions).view(backup, -1).max(0).values for head in self.target]
                y = reward + cfg.gamma * (1 - done) * torch.minimum(*best)
            loss = sum(((self.value(head, obs, action) - y) ** 2).mean() for head in self.q)
            self.critic_adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for head in self.q for p in head.parameters()], cfg.grad_norm)
            self.critic_adam.step()
        t = (bits[:, 1] * T) >> 32
        bar = torch.from_numpy(self.bar)[t][:, None]
        eps = z[rng.ACTION_NOISE]
        loss = ((self.actor(bar.sqrt() * action + (1 - bar).sqrt() * eps, t, obs) - eps) ** 2).mean()
        if not cfg.bc:
            drawn = self.sample(self.actor, obs, z[rng.VALUE_NOISE])
            q = [self.value(head, obs, drawn) for head in self.q]
            up, scale = q if int(bits[0, 3]) < 2**31 else q[::-1]
            loss = loss - cfg.eta * up.mean() / scale.abs().mean().detach()
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), cfg.grad_norm)
        self.adam.step()
        rate = 1 - cfg.ema_decay if self.step >= cfg.ema_start and self.step % cfg.ema_every == 0 else 0.0
        pairs = [(self.ema, self.actor, rate), *((a, b, cfg.tau) for a, b in zip(self.target, self.q, strict=True))]
        for slow, fast, share in pairs:
            for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
                a.data.lerp_(b.data, share)
        self.step += 1


@pytest.mark.parametrize("changes", [{}, {"bc": True}, {"max_q_backup": True}], ids=["dql", "bc", "max-q-backup"])
def test_steps_follow_the_slow_implementation(changes):
    cfg, data = config(**changes), transitions()
    state, fresh = trained(cfg, 12), dql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    for member in range(cfg.seeds):
        slow = Slow(cfg, cfg.seed + member)
        for _ in range(12):
            slow.train_step(data)
        pairs = [(state.actor.param, slow.actor, 0, member), (state.actor.ema, slow.ema, 0, member)]
        if state.critic is not None:
            pairs += [(state.critic.param, slow.q[i], 1, 2 * member + i) for i in range(2)]
            pairs += [(state.critic.ema, slow.target[i], 1, 2 * member + i) for i in range(2)]
        for ours, module, which, row in pairs:
            expected = flatten(module, (ACTOR, CRITIC)[which], slow.places[which])
            start = (fresh.actor, fresh.critic)[which].param[row].double()
            # Of the way that twelve steps went, float32 may lose 1e-3: Adam divides small gradients by their size.
            assert (ours[row].double() - expected).norm() < 1e-3 * (expected - start).norm()


def test_the_schedule_is_that_of_the_paper_at_five_steps():
    constants = dql.diffusion(5, "cpu", torch.float64)
    # By hand: alpha_1 = exp(-0.02 - 0.198) and alpha_5 = exp(-0.02 - 1.782).
    assert constants.alpha_bar[0] == pytest.approx(np.exp(-0.218))
    assert constants.alpha_bar[4] == pytest.approx(np.exp(-0.1 - 0.198 * (1 + 3 + 5 + 7 + 9)))
    assert constants.spread[0] == 0.0 and constants.mean_t[0] == 0.0 and constants.mean_0[0] == pytest.approx(1.0)


@pytest.mark.parametrize("changes", [{}, {"bc": True}, {"max_q_backup": True}])
def test_promise_9_the_step_stays_on_the_device(changes):
    cfg = config(**changes)
    for device, watched in (("cpu", True), ("meta", False)):
        state = dql.init_state(cfg, OBS_DIM, ACTION_DIM, device)
        step = dql.make_step(cfg, state, buffer_of(cfg, device=device))
        assert problems_of(step, state.tensors if watched else dict, steps=3 if watched else 1) == []


def test_a_seed_among_others_trains_like_the_seed_alone():
    together = trained(config(seed=3, seeds=3), 6)
    for i in range(3):
        alone = trained(config(seed=3 + i, seeds=1), 6)
        assert torch.allclose(together.actor.param[i], alone.actor.param[0], atol=1e-5)


def test_both_heads_are_climbed_over_the_steps():
    words = rng.random_bits(rng.plan({rng.INDEX: 1}, "cpu"), rng.seed_keys(list(range(64)), "cpu"), torch.tensor(5))
    assert 16 < int((words[rng.INDEX][:, 0, 3] >> 31).sum()) < 48


def test_a_run_is_evaluated_resumed_bitwise_and_acts(tmp_path: Path):
    settings = {"algo": "dql", "sampling_steps": 3, "candidates": 4, "select": "softmax", "eval_every": 30}
    whole = train(tiny(tmp_path, **settings))
    assert whole.algo == "dql" and whole.return_last is not None
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(RunDir(tmp_path / "cut").checkpoint(30))
    train(tiny(tmp_path, **settings, run_dir=str(tmp_path / "cut")))
    states = [(RunDir(tmp_path / n).checkpoint(30) / checkpoint.STATE).read_bytes() for n in ("run", "cut")]
    assert states[0] == states[1]
    policy = gtp_fast.load_policy(tmp_path / "run", seed=0)
    obs = np.zeros((5, 17), np.float32)
    assert policy.act(obs).shape == (5, 6) and np.abs(policy.act(obs)).max() <= 1.0
    one = gtp_fast.load_policy(tmp_path / "run", seed=0, candidates=1)
    noise = np.random.default_rng(0).normal(size=(5, 18)).astype(np.float32)
    assert np.array_equal(one.act(obs, noise), one.act(obs, noise))


def test_a_diffusion_acts_in_the_steps_that_it_was_trained_with(tmp_path: Path):
    run = train(tiny(tmp_path, algo="dql", sampling_steps=3)).run_dir
    with pytest.raises(UsageError, match="in the 3 steps of its training, not in --sampling-steps 5"):
        gtp_fast.load_policy(run, sampling_steps=5)
