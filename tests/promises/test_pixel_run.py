"""A run on pictures from its file to its score: it learns, ends as if never killed, acts, and can be exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frame_cases import ACTION_DIM, SEEK, SIDE, seek_file
from run_cases import back_to

from gtp_fast import device
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.dataset import load
from gtp_fast.data.frames import FrameBuffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.errors import CheckpointError, DataError, UsageError
from gtp_fast.evaluation.environments import check_environment, make_env, with_bounds
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.video import record_video
from gtp_fast.policy import export
from gtp_fast.policy.policy import load_policy
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.training.train import train

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """Return what makes settings of a short run on generated pictures, in a directory of its own."""
    folder = tmp_path_factory.mktemp("pixels")
    data = seek_file(folder / "seek.hdf5")

    def make(name: str, **changes: Any) -> TrainConfig:
        wanted = {
            "env": "frame_cases:gtp_fast_tests/Seek-v0", "dataset": str(data), "run_dir": str(folder / name),
            "steps": 12, "batch_size": 8, "hidden": 32, "sampling_steps": 2, "frame_stack": 2, "augment": 0.5,
            "eta": 1.0, "log_every": 4, "save_every": 4, "eval_every": 0, "ema_start": 2, "ema_every": 1,
            "device": "cpu", "backend": "eager", "threads": 1,
        }  # fmt: skip
        return run_settings(wanted | changes)

    return make


@pytest.fixture(scope="module")
def learned(settings) -> Path:
    """A run of behaviour cloning long enough to look where the square is."""
    cfg = settings(
        "learned", bc=True, steps=100, batch_size=32, lr=3e-3, steps_schedule="fixed:20", ema_decay=0.9, augment=0.0,
        save_every=0, eval_every=100, eval_episodes=4, log_every=100,
    )  # fmt: skip
    return Path(train(cfg).run_dir)


def test_cloning_from_pictures_points_to_the_square(learned):
    result = evaluate_policy(load_policy(learned), SEEK, episodes=20, seed=1)
    # 4 of 4 for the expert, 2.3 for the best action that does not look, 0 of all directions alike.
    assert result.returns_SE.mean() > 2.8
    assert (learned / "eval" / "step-00000100.json").exists()  # the worker process scored it, too


def test_a_policy_of_pictures_acts_on_one_or_several(learned):
    policy = load_policy(learned)
    obs = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 6), dtype=np.uint8)
    noise = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    together = policy.act(obs, noise)
    assert together.shape == (3, 2) and np.abs(together).max() <= 1
    for i in range(3):
        np.testing.assert_allclose(policy.act(obs[i], noise[i : i + 1]), together[i], atol=1e-6)
    assert policy.paths(obs[None]).shape == (3, 1, 3, 2)


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        (np.zeros((SIDE, SIDE, 3), np.uint8), r"\(16, 16, 3\), expected \(16, 16, 6\) or \(B, 16, 16, 6\)"),
        (np.zeros((SIDE, SIDE, 6), np.float32), "image observations of float32, expected uint8"),
        (np.zeros((0, SIDE, SIDE, 6), np.uint8), "B at least 1"),
    ],
    ids=["unstacked", "float", "none"],
)
def test_what_is_no_picture_of_the_policy_is_refused(learned, obs, said):
    with pytest.raises(UsageError, match=said):
        load_policy(learned).act(obs)


def test_a_run_that_was_cut_off_ends_bitwise_equal_to_a_whole_one(settings):
    whole = RunDir(Path(train(settings("whole")).run_dir))
    cut = back_to(Path(shutil.copytree(whole.path, whole.path.parent / "cut")), 4)
    train(settings("cut"))
    ours, theirs = (checkpoint.load(run.checkpoint(12)).tensors for run in (whole, cut))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    another = RunDir(Path(train(settings("seed", seed=1)).run_dir))
    assert (checkpoint.load(another.checkpoint(12)).tensors["actor.param"] != ours["actor.param"]).any()


def test_candidates_are_judged_from_one_look(settings):
    run = train(settings("judged", steps=4, candidates=3, select="argmax")).run_dir
    policy = load_policy(run)
    obs = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 6), dtype=np.uint8)
    noise = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    chosen, plain = policy.act(obs, noise), load_policy(run, candidates=1)
    for i in range(2):
        one_by_one = plain.act(obs[[i] * 3], noise[3 * i : 3 * i + 3])
        assert np.abs(one_by_one - chosen[i]).max(axis=1).min() < 1e-6


@pytest.mark.parametrize("stack", [1, 3])
def test_an_environment_stacks_frames_as_the_buffer_does(settings, stack):
    cfg = settings("unused", frame_stack=stack, augment=0.0)
    assert cfg.dataset is not None and SEEK.eval_env is not None
    data = load(with_bounds(SEEK, needed=True), Path(cfg.dataset))
    buffer = FrameBuffer.from_transitions(data, cfg, "cpu")
    batch = _first(buffer, 4)
    with closing(make_env(SEEK.eval_env, stack)) as env:
        obs, _ = env.reset(seed=0)  # the file's first episode
        assert env.observation_space.shape == (SIDE, SIDE, 3 * stack) and env.observation_space.contains(obs)
        for i in range(4):
            assert np.array_equal(batch.obs_SBD[0, i].numpy(), obs)
            obs, *_ = env.step(data.action_NA[i])
            assert np.array_equal(batch.next_obs_SBD[0, i].numpy(), obs)


def _first(buffer: FrameBuffer, rows: int) -> Batch:
    return buffer.gather(torch.arange(rows)[None], torch.tensor(0))


def test_an_environment_of_other_observations_is_refused():
    with pytest.raises(DataError, match=r"shape \(16, 16, 3\) but the data have images of \(32, 32, 3\)"):
        check_environment(SEEK, (32, 32, 3), ACTION_DIM)
    numbers = DataSpec("x", "file", eval_env=EvalEnv("Pendulum-v1"))
    with pytest.raises(DataError, match=r"shape \(3,\) but the data have images of \(16, 16, 3\)"):
        check_environment(numbers, (SIDE, SIDE, 3), 1)
    with pytest.raises(UsageError, match="--frame-stack 2 needs image observations, and the environment has"):
        check_environment(numbers, (SIDE, SIDE, 6), 1, frame_stack=2)


def test_the_first_episode_is_filmed(learned, tmp_path):
    record_video(load_policy(learned), SEEK, tmp_path / "a.gif", frames=3)
    assert (tmp_path / "a.gif").read_bytes()[:3] == b"GIF"


def test_pictures_are_no_work_for_the_fused_step(settings, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="needs vector observations: its kernels have no image encoder"):
        train(settings("fused", backend="fused"))
    assert device.resolve(settings("auto", backend="auto"), images=True)[0].backend != "fused"


@pytest.mark.long
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_an_exported_policy_of_pictures_acts_as_the_policy(learned, tmp_path, format):
    found = export.export_run(learned, export.ExportConfig(format=format, out=tmp_path / f"p.{format}"))
    assert found["largest_difference"] <= export.TOLERANCE and found["inputs"]["obs"] == [SIDE, SIDE, 6]


@pytest.mark.parametrize("shape", [[16, 16], [16, 16, 5], "abc", [16, -1, 6]])
def test_a_description_of_other_frames_is_refused(learned, shape):
    values = load_policy(learned).config.to_json()
    assert PolicyConfig.from_json(values).frame_shape == (SIDE, SIDE, 6)
    with pytest.raises(CheckpointError, match="frame_shape"):
        PolicyConfig.from_json(values | {"frame_shape": shape})


def test_a_description_from_before_frames_is_of_numbers(learned):
    values = load_policy(learned).config.to_json()
    older = {name: value for name, value in values.items() if not name.startswith("frame_")}
    assert PolicyConfig.from_json(older).obs_shape == SIDE * SIDE * 6
