"""OGBench by its names: fetched from a server on this machine, trained on, and scored in its own environment."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ogbench_cases
import pytest
from data_server import Site, serving
from ogbench_cases import columns, write
from run_cases import python

from gtp_fast.cli.main import main
from gtp_fast.data import catalog, dataset, download
from gtp_fast.errors import DataError

SPEC = catalog.resolve("cube-single")
PLACE = "/cube-single-play-v0.npz"
needs_real = pytest.mark.skipif(
    not ogbench_cases.REAL.is_file(), reason="the sample files are not beside this checkout"
)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write(tmp_path / "made.npz", columns(trajectories=20, length=100)).read_bytes()


@pytest.fixture
def site(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving(Site({PLACE: content})) as found:
        monkeypatch.setenv("GTP_FAST_OGBENCH_URL", found.url + "/")
        monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path / "cache"))
        yield found


SMALL = ["--steps", "4", "--hidden", "16", "--batch-size", "8", "--threads", "1", "--backend", "eager"]
SMALL += ["--eval-episodes", "1", "--json"]


@pytest.mark.parametrize("cuts", [[], [10_000]], ids=["whole", "cut off"])
def test_a_name_fetches_its_file_into_the_cache_of_the_package(site: Site, content: bytes, cuts: list[int]):
    site.cut_at = list(cuts)
    path = download.fetch(SPEC)
    assert path.read_bytes() == content and path.name == "cube-single-play-v0.npz"
    assert [where for where, _ in site.asked] == [PLACE] * (1 + len(cuts))


def test_all_tasks_of_a_file_share_it(site: Site):
    for name in ("cube-single-singletask", "cube-single-play-singletask-task3-v0"):
        assert len(dataset.load(catalog.resolve(name)).obs_ND) == 2000
    assert len(site.asked) == 1


def test_with_neither_file_nor_network_it_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path))
    monkeypatch.setenv("GTP_FAST_OGBENCH_URL", "http://127.0.0.1:9")  # nobody answers there
    words = f"set GTP_FAST_OGBENCH_URL to a mirror, or put the file at {tmp_path / 'cube-single-play-v0.npz'};"
    with pytest.raises(DataError, match=re.escape(words)):
        dataset.load(SPEC)


def test_the_published_address_is_ogbenchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ogbench.utils

    monkeypatch.delenv("GTP_FAST_OGBENCH_URL", raising=False)
    monkeypatch.delenv("OGBENCH_DATASET_DIR", raising=False)
    assert download.addresses(SPEC) == [f"{ogbench.utils.DATASET_URL}/cube-single-play-v0.npz"]
    assert download.cache_path(SPEC) == Path(ogbench.utils.DEFAULT_DATASET_DIR).expanduser() / "cube-single-play-v0.npz"


def test_the_commands_fetch_describe_and_check_a_file(site: Site, capsys):
    def typed(*words: str) -> dict[str, Any]:
        main(["data", *words, "--json"])
        return json.loads(capsys.readouterr().out)

    path = typed("download", SPEC.name)["path"]
    by_name, by_file = typed("info", SPEC.name), typed("check", path, "--env", SPEC.name)
    assert by_name["transitions"] == by_file["transitions"] == 2000 and by_name["sha256"] == by_file["sha256"]


@pytest.mark.long
@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_training_by_name_fetches_the_file_first_and_is_scored_in_the_environment(site: Site, tmp_path: Path, capfd):
    main(["train", "--env", SPEC.name, "--run-dir", str(tmp_path / "run"), "--eval-every", "4", *SMALL])
    found = json.loads(next((tmp_path / "run" / "eval").glob("step-*.json")).read_text())
    assert found["env_id"] == "ogbench:cube-single-singletask-v0" and found["lengths"] == [[200]]
    assert "Warning" not in capfd.readouterr().err  # of the worker, in which the environment is


@needs_real
@pytest.mark.slow
def test_real_trajectories_of_a_file_of_ones_own_are_trained_on(tmp_path: Path, capsys):
    path = shutil.copy(ogbench_cases.REAL, tmp_path / "mine.npz")
    typed = ["--env", "ogbench:cube-single-singletask-task4-v0", "--dataset", str(path), "--eval-every", "0"]
    main(["train", "--run-dir", str(tmp_path / "run"), *typed, *SMALL])
    assert "578 of 24,000 rows are successes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*precision lowered", "ignore:.*DISPLAY")
def test_a_random_policy_is_rewarded_alike_in_the_environment_and_in_a_file(tmp_path: Path):
    """What the environment pays at each step is what relabelling the states before those steps gives."""
    from gtp_fast.data.spec import EvalEnv
    from gtp_fast.evaluation.environments import make_env

    env = make_env(EvalEnv("ogbench:cube-double-singletask-task1-v0"))
    _, info = env.reset(seed=0)
    states, paid, random = [info["qpos"]], [], np.random.default_rng(0)
    for _ in range(20):
        _, reward, _, _, info = env.step(random.uniform(-1, 1, 5))
        paid.append(float(reward))
        states.append(info["qpos"])
    values = columns(trajectories=1, length=20, obs_dim=37) | {"qpos": np.array(states)}
    data = dataset.load(catalog.resolve("cube-double-play-singletask-task1-v0"), write(tmp_path / "a.npz", values))
    assert data.reward_N.tolist() == paid and set(paid) == {-1.0}  # one of the two cubes begins at its goal


@pytest.mark.long
def test_where_nothing_can_be_drawn_a_visual_task_says_what_to_set(monkeypatch: pytest.MonkeyPatch):
    code = (
        "from gtp_fast.data.catalog import resolve\nfrom gtp_fast.evaluation.environments import make_env\n"
        "make_env(resolve('visual-cube-single').eval_env)"
    )
    monkeypatch.setenv("MUJOCO_GL", "disable")
    told = python(code, ends_with=1).stderr
    words = "UsageError: ogbench:visual-cube-single-singletask-task1-v0 cannot render its observations here ("
    assert words in told and "set MUJOCO_GL=egl or osmesa" in told
