"""From a real maze file to success in its maze: the whole path, in under half a minute of CPU time each."""

from __future__ import annotations

import pytest
from families import family
from places import SHARED

from gtp_fast.data.catalog import run_settings
from gtp_fast.training.train import train

CASES = {  # file, settings, success that is asked for (an untrained policy succeeds in none of 10)
    "PointMaze_UMaze-v3": ("pointmaze_umaze.hdf5", {"steps": 500, "hidden": 64, "batch_size": 128}, 0.5),
    # GTP, which the other case trains, takes several times as long here.
    "antmaze-umaze-v0": (
        "antmaze_umaze.hdf5",
        {"algo": "td3bc", "steps": 2_000, "hidden": 128, "batch_size": 128},
        0.2,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", family(CASES, quick=["PointMaze_UMaze-v3"]))
def test_a_clone_of_the_real_controller_finds_the_goal(name, tmp_path):
    file, settings, asked = CASES[name]
    if not (SHARED / file).exists():
        pytest.skip(f"the real file {file} is not beside this checkout")
    common = {"bc": True, "lr": 1e-3, "lr_schedule": "cosine", "backend": "eager", "device": "cpu", "threads": 1}
    last = {"eval_every": settings["steps"], "eval_episodes": 10, "save_every": 0, "run_dir": str(tmp_path / "run")}
    result = train(run_settings({"env": name, "dataset": str(SHARED / file), **common, **last, **settings}))
    assert result.return_last is not None and result.return_last[0] >= asked
