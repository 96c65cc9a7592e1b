"""A machine with torch alone trains without evaluation, acts and measures; an evaluation says what it lacks.

GPU images often have no simulator. Each test runs a process in which the packages are absent (tests/support/absent).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_cases import columns, write
from places import ROOT, SUPPORT

from bench.gpu import checks

pytestmark = pytest.mark.slow
SIMULATORS = "gymnasium mujoco minari nvtx gymnasium_robotics ogbench ray"
TRAIN = """
import sys
import numpy as np
import pytest
from pathlib import Path
import gtp_fast
from gtp_fast.errors import DataError, UsageError

folder = Path(sys.argv[1])
tiny = {"steps": 4, "hidden": 8, "batch_size": 4, "sampling_steps": 2, "device": "cpu", "backend": "eager"}
tiny |= {"threads": 1}

def train(env, **changes):
    data = {"HalfCheetah-v5": "cheetah.hdf5", "halfcheetah-medium-v2": "cheetah.hdf5", "antmaze-umaze-v0": "ant.hdf5"}
    dataset = {"dataset": str(folder / data[env])} if env in data else {}
    run = {"run_dir": str(folder / env), "eval_every": 0}
    return gtp_fast.train(**{"env": env, **dataset, **tiny, **run, **changes})
"""


Ended = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process in which no simulator was found, and which forks."""
    path = os.pathsep.join([str(SUPPORT / "absent"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "GTP_FAST_ABSENT": SIMULATORS}
    words = [sys.executable, str(SUPPORT / "absent_server.py")]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        yield process
        process.stdin.close()


@pytest.fixture
def alone(server, tmp_path: Path) -> Callable[..., Ended]:
    """Return a function that runs a program to its end in a process of its own."""

    def run(code: str, *words: str, ends_with: int = 0, absent: str = SIMULATORS) -> Ended:
        out, err = tmp_path / "out", tmp_path / "err"
        program = {"code": code, "words": words, "absent": absent, "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(program) + "\n")
        server.stdin.flush()
        _, ended = (json.loads(server.stdout.readline()) for _ in range(2))
        assert ended["code"] == ends_with, err.read_text()
        return Ended(list(words), ended["code"], out.read_text(), err.read_text())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("absent")
    write(place / "cheetah.hdf5", columns())
    ant = columns(sizes=(29, 8))
    write(place / "ant.hdf5", ant | {"observations": ant["observations"] / 100})  # metres: none leaps
    return place


def test_what_is_absent_is_neither_found_nor_imported(alone):
    code = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1].split():\n"
        "    assert importlib.util.find_spec(name) is None, name\n"
        "    try:\n        __import__(name)\n"
        "    except ModuleNotFoundError as error:\n        assert error.name == name\n"
        "    else:\n        raise AssertionError(name)\n"
        "import numpy"
    )
    alone(code, SIMULATORS)


def test_a_training_without_evaluation_goes_on_after_its_last_checkpoint_and_its_policy_acts(alone, folder: Path):
    code = """
last = Path(train("HalfCheetah-v5", save_every=2).checkpoint)
last.rename(folder / last.name)
assert train("HalfCheetah-v5", save_every=2).steps_per_second > 0 and last.is_dir()
for env in ("halfcheetah-medium-v2", "antmaze-umaze-v0", "hopper-demo-v0", "multigoal-v0"):
    result = train(env)
    policy = gtp_fast.load_policy(result.run_dir)
    assert np.abs(policy.act(np.zeros(policy.config.obs_dim, np.float32))).max() <= 1
"""
    alone(TRAIN + code, str(folder))


def test_the_commands_that_need_no_environment_run_and_an_evaluation_says_what_it_lacks(alone, folder: Path):
    code = """
import sys
from gtp_fast.cli.main import main
run = sys.argv[1] + "/typed"
train = f"train --env hopper-demo-v0 --steps 4 --hidden 8 --batch-size 4 --eval-every 0 --run-dir {run} --json"
for command in (train, "doctor", "data info hopper-demo-v0", "data list", f"eval {run}"):
    main(command.split())
"""
    done = alone(code, str(folder), ends_with=2)  # as the last one
    assert '"steps": 4' in done.stdout and "PointMaze_Large-v3" in done.stdout
    assert "error: the environment Hopper-v5 needs the package gymnasium" in done.stderr


def test_every_part_of_the_gpu_bench_is_imported_and_the_tests_that_a_gpu_runs_are_collected(alone):
    code = """
import importlib, pytest, sys
from bench.gpu import checks
for name in sys.argv[1:]:
    importlib.import_module(name)
sys.exit(pytest.main(["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", *checks.files()]))
"""
    found = alone(code, *(f"bench.gpu.{path.stem}" for path in (ROOT / "bench" / "gpu").glob("[a-z]*.py"))).stdout
    assert all(f"{file}::" in found for file in checks.files())


def test_an_evaluation_that_is_asked_for_is_refused_before_the_training(alone, folder: Path):
    code = """
envs = {"hopper-demo-v0": "Hopper-v5", "multigoal-v0": "gtp_fast.evaluation.multigoal:gtp_fast/MultiGoal-v0"}
for env, of in envs.items():
    with pytest.raises(UsageError) as refused:
        train(env, eval_every=2, run_dir=str(folder / "refused"))
    assert str(refused.value) == (
        f"the environment {of} needs the package gymnasium, which is not installed; "
        "pip install 'gymnasium[mujoco]', or pass --eval-every 0 to train"
    )
    assert not (folder / "refused").exists()
"""
    alone(TRAIN + code, str(folder))


def test_a_name_that_stands_for_nothing_is_refused_by_its_nearest_ones(alone):
    done = alone("from gtp_fast.cli.main import main\nmain(['train', '--env', 'hopper-dem-v0'])", ends_with=2)
    assert "did you mean hopper-demo-v0" in done.stderr


def test_without_the_simulator_alone_an_evaluation_names_it(alone, folder: Path):
    pytest.importorskip("gymnasium")
    code = """
for env in ("HalfCheetah-v5", "antmaze-umaze-v0"):
    with pytest.raises(UsageError) as refused:
        train(env, eval_every=2, run_dir=str(folder / "refused"))
    words = "needs the package mujoco, which is not installed; pip install 'gymnasium[mujoco]', or"
    assert words in str(refused.value)
"""
    alone(TRAIN + code, str(folder), absent="mujoco")


@pytest.mark.parametrize("absent", ["gymnasium", "minari"])
def test_a_minari_data_set_says_which_package_reads_it(alone, tmp_path: Path, absent: str):
    if absent == "minari":
        pytest.importorskip("gymnasium")  # it would be named first
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text("{}")
    code = f"""
from gtp_fast.data import minari as minari_data
with pytest.raises(DataError) as refused:
    minari_data.read_directory(folder)
assert "is read by the package {absent}, which is not installed; pip install 'minari[hdf5]'" in str(refused.value)
"""
    alone(TRAIN + code, str(tmp_path), absent=absent)
