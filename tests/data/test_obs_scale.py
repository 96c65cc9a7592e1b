"""Normalised observations: what the networks are trained on is what they act on, by every way of acting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import family
from learn_cases import ACTION_DIM, OBS_DIM, transitions
from run_cases import back_to, tiny

from gtp_fast.algorithms import networks
from gtp_fast.config import TrainConfig, hash6
from gtp_fast.data import replay
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.errors import UsageError
from gtp_fast.experiments.report import draw_report
from gtp_fast.policy import export
from gtp_fast.policy.policy import Policy, PolicyConfig, load_policy
from gtp_fast.runs import checkpoint
from gtp_fast.training.train import train

MEAN, STD = (3.0, -20.0, 0.5, 100.0, 0.0), (0.5, 4.0, 1.5, 10.0, 1.0)
SIZES = OBS_DIM, ACTION_DIM, 16
LAYOUTS = {"actor": networks.actor_layout(*SIZES), "critic": networks.critic_layout(*SIZES)}
CONFIG = PolicyConfig(*SIZES, 0.002, 10.0, 0.5, 7.0, 3, 4, "argmax", (0, 1))
NORMALISED = replace(CONFIG, obs_mean=MEAN, obs_std=STD)


def _tensors() -> dict[str, torch.Tensor]:
    seeds = {"actor": [0, 1], "critic": [2, 3, 4, 5]}
    return {name: networks.init_flat(layout, seeds[name]) for name, layout in LAYOUTS.items()}


def _folded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the normalisation into the first layers' weights, in float64: the oracle of what a policy does."""
    mean, std = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    rows = {"actor": slice(-OBS_DIM, None), "critic": slice(0, OBS_DIM)}
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, layout in LAYOUTS.items():
        p = networks.views(found[name], layout)
        weight = p["mlp0.w"][:, rows[name]].double() / std[:, None]
        p["mlp0.b"] -= (mean @ weight).float()[:, None]
        p["mlp0.w"][:, rows[name]] = weight.float()
    return found


def test_mean_and_spread_are_those_of_float64():
    obs = np.random.default_rng(0).normal([1e4, -3.0], [1.0, 0.1], size=(replay.BLOCK + 77, 2)).astype(np.float32)
    mean, std = replay.measured(obs)
    assert mean == tuple(np.float32(obs.astype(np.float64).mean(axis=0)))
    assert np.allclose(std, obs.astype(np.float64).std(axis=0) + 1e-3, rtol=1e-7)


def test_a_constant_column_becomes_zeros():
    obs = np.stack([np.full(1_000, 0.1), np.arange(1_000)], axis=1).astype(np.float32)
    scaled = replay.scaled(obs, *replay.measured(obs))
    assert (scaled[:, 0] == 0).all() and abs(scaled[:, 1].std() - 1) < 1e-4


def test_the_buffer_holds_to_the_bit_what_a_policy_sees():
    data = transitions()
    data.obs_ND *= np.float32([1, 10, 100, 0.01, 3])
    buffer = ReplayBuffer.from_transitions(data, TrainConfig(env="x", normalise_obs=True), "cpu")  # pyright: ignore
    assert buffer.obs_scale is not None
    policy = Policy(replace(CONFIG, obs_mean=buffer.obs_scale[0], obs_std=buffer.obs_scale[1]), _tensors())
    batch = buffer.gather(torch.arange(300)[None])
    assert np.array_equal(policy._normalised(data.obs_ND), batch.obs_SBD[0].numpy())
    assert np.array_equal(policy._normalised(data.next_obs_ND), batch.next_obs_SBD[0].numpy())
    assert np.abs(batch.obs_SBD[0].numpy().std(axis=0) - 1).max() < 0.1  # 1e-3 beside a spread of 0.01


@pytest.mark.parametrize("way", [lambda p: p, lambda p: p.reference()], ids=["numpy", "formulas"])
def test_acting_on_raw_observations_is_acting_with_folded_weights(way):
    obs = np.random.default_rng(1).normal(MEAN, STD, size=(2, 30, OBS_DIM)).astype(np.float32)
    tensors = _tensors()
    ours = way(Policy(NORMALISED, tensors)).act_members(obs)
    theirs = way(Policy(CONFIG, _folded(tensors))).act_members(obs)
    # Float32 of observations near 100 and weights of 0.1 cancels to a few 1e-6 in the first layer.
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours - way(Policy(CONFIG, tensors)).act_members(obs)).max() > 0.1
    paths, expected = Policy(NORMALISED, tensors).paths(obs), Policy(CONFIG, _folded(tensors)).paths(obs)
    assert np.abs(paths - expected).max() < 1e-3  # they begin at 10 and are unclamped


def test_a_description_keeps_every_bit_and_older_ones_have_no_normalisation():
    config = replace(NORMALISED, obs_mean=tuple(np.float32([0.1, 1e-30, -1e9, 1 / 3, 7]).tolist()))
    assert PolicyConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    older = {name: value for name, value in CONFIG.to_json().items() if not name.startswith("obs_m")}
    del older["obs_std"]
    assert PolicyConfig.from_json(older) == CONFIG


def test_a_run_saves_what_it_was_normalised_by_and_says_so(tmp_path: Path):
    run = Path(train(tiny(tmp_path, steps=4, normalise_obs=True)).run_dir)
    config = load_policy(run).config
    trained = np.delete(np.arange(60), [19, 39, 59])  # rows at a time limit have no successor
    assert config.obs_mean == (trained.mean(),) * 17 and config.obs_std is not None
    assert np.allclose(config.obs_std, trained.std() + 1e-3)
    draw_report([run], tmp_path / "report")
    assert "Observations are normalised by the data's mean" in (tmp_path / "report" / "README.md").read_text()


def test_a_run_does_not_go_on_with_another_normalisation(tmp_path: Path):
    run = Path(train(tiny(tmp_path, steps=4, normalise_obs=True)).run_dir)
    with pytest.raises(UsageError, match="--normalise-obs True there, False here"):
        train(tiny(tmp_path, steps=8, run_dir=str(run), normalise_obs=False))
    assert hash6(tiny(tmp_path, normalise_obs=True)) != hash6(tiny(tmp_path))


def test_a_run_that_went_on_equals_one_that_never_stopped_to_the_bit(tmp_path: Path):
    changes = {"normalise_obs": True, "save_every": 6, "lr_schedule": "constant", "steps_schedule": "fixed:8"}
    whole = Path(train(tiny(tmp_path, steps=12, run_dir=str(tmp_path / "whole"), **changes)).run_dir)
    part = Path(train(tiny(tmp_path, steps=12, run_dir=str(tmp_path / "part"), **changes)).run_dir)
    back_to(part, 6)
    train(tiny(tmp_path, steps=12, run_dir=str(part), **changes))
    ours, theirs = (checkpoint.load(next(run.glob("ckpt/step-*12"))) for run in (part, whole))
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)
    assert load_policy(part).config == load_policy(whole).config


@pytest.mark.slow
@pytest.mark.parametrize("format", family(["pt2", "onnx"], quick=["pt2"]))
def test_an_exported_file_takes_raw_observations(tmp_path: Path, format: str):
    run = Path(train(tiny(tmp_path, steps=4, normalise_obs=True, candidates=2, select="argmax")).run_dir)
    found = export.export_run(run, export.ExportConfig(format=format, seed=1))
    assert found["largest_difference"] <= export.TOLERANCE
    policy = load_policy(run, seed=1, device="cpu")
    inputs = export.drawn(policy, 20) | {"obs": np.linspace(0, 59, 20 * 17, dtype=np.float32).reshape(20, 17)}
    acted = export.reader(format, (run / f"policy.{format}").read_bytes())(inputs)
    assert np.abs(acted - policy.act(**inputs)).max() < 1e-4
