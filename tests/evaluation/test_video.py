"""A video is the episode that an evaluation plays first, published whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eval_cases import Painted, spec, untrained
from PIL import Image
from run_cases import gtp_fast, tiny

from gtp_fast.data import catalog
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.environments import with_limit
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.failures import RolloutError
from gtp_fast.evaluation.rollout import GROUP
from gtp_fast.evaluation.video import record_video
from gtp_fast.training.train import train

OFFSCREEN = """
import gymnasium
env = gymnasium.make("Hopper-v5", render_mode="rgb_array")
env.reset()
env.render()
"""


def test_a_video_holds_every_frame_of_the_first_episode_at_its_speed(tmp_path: Path):
    record_video(untrained(), spec("Painted"), tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.format, film.n_frames, film.size, film.info["duration"]) == ("GIF", 9, (32, 32), 50)
        film.seek(5)
        columns = np.asarray(film.convert("RGB"))[0, :, 0]
    assert np.flatnonzero(columns > 128).tolist() == [20, 21, 22, 23]
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]


def test_a_video_shows_the_episode_that_the_evaluation_counts(tmp_path: Path):
    taken: list[np.ndarray] = []
    original, acting = Painted.step, untrained()
    try:
        Painted.step = lambda env, action: (taken.append(np.array(action)), original(env, action))[1]
        evaluate_policy(acting, spec("Painted"), episodes=7, seed=3)
        record_video(acting, spec("Painted"), tmp_path / "film.gif", seed=3)
    finally:
        Painted.step = original
    evaluated, filmed = np.array(taken[: 8 * GROUP]).reshape(8, GROUP, 3)[:, 0], np.array(taken[2 * 7 * 8 :])
    assert np.array_equal(evaluated, filmed)


def test_a_video_ends_at_the_limit_of_the_evaluation(tmp_path: Path):
    record_video(untrained(), with_limit(spec("Painted"), 3), tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4


def test_what_the_environment_raises_in_a_video_is_told_in_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("eval_cases.Painted.step", lambda env, action: 1 / 0)
    with pytest.raises(
        RolloutError, match=r"^eval_cases:.*Painted-v0: ZeroDivisionError: division by zero \(test_video"
    ):
        record_video(untrained(), spec("Painted"), tmp_path / "film.gif")


def test_a_video_that_cannot_be_made_leaves_the_one_before(tmp_path: Path, monkeypatch):
    file = tmp_path / "film.gif"
    file.write_bytes(b"before")
    monkeypatch.setattr("eval_cases.Painted.render", lambda env: 1 / 0)
    with pytest.raises(UsageError, match=r"Painted-v0 cannot render here \(division by zero\)"):
        record_video(untrained(), spec("Painted"), file)
    assert file.read_bytes() == b"before" and list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere/film\.gif cannot be written .*; name another file"):
        record_video(untrained(), spec("Painted"), tmp_path / "nowhere/film.gif")


def test_an_environment_without_pictures_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"MultiGoal-v0 renders no images .*leave --video out"):
        record_video(untrained(2, 2), catalog.resolve("multigoal-v0"), tmp_path / "film.gif")


@pytest.mark.long
def test_eval_of_a_mujoco_run_writes_a_video(tmp_path: Path):
    environ = {"MUJOCO_GL": "egl", **os.environ}
    settings = tiny(tmp_path, steps=10, seeds=1, env="hopper-demo-v0", dataset=None, eval_max_steps=5)
    run, film = train(settings).run_dir, tmp_path / "film.gif"
    done = gtp_fast("eval", run, "--episodes", "1", "--video", str(film), "--json", env=environ)
    if done.returncode:
        command = [sys.executable, "-c", OFFSCREEN]
        drawn = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if drawn.returncode:
            pytest.skip(f"MuJoCo draws no picture here with MUJOCO_GL={environ['MUJOCO_GL']}: {drawn.stderr[-120:]}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lengths"] == [[5]]
    with Image.open(film) as pictures:
        assert pictures.n_frames == 6 and pictures.size == (480, 480)
