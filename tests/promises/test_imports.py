"""Promise 10: no file decides what is imported, and a sweep's trials import what their parent would."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml
from data_cases import columns, write
from run_cases import words

import gtp_fast as package
from gtp_fast.cli.main import main
from gtp_fast.errors import UsageError
from gtp_fast.experiments.reproduce import scores

CANARY = """
import gymnasium, numpy as np
class Canary(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}
    def __init__(self, render_mode=None): self.render_mode = render_mode
    def reset(self, *, seed=None, options=None): return np.zeros(3, np.float32), {}
    def step(self, action): return np.zeros(3, np.float32), 1.0, True, False, {}
    def render(self): return np.zeros((16, 16, 3), np.uint8)
gymnasium.register("Canary-v0", Canary)
"""
ENV = "canary:Canary-v0"
SMALL = {"algo": "td3bc", "steps": 4, "eval_every": 0, "hidden": 8, "batch_size": 8, "backend": "eager", "threads": 1}
REFUSED = (
    f"names the environment {ENV}, and a file may not decide what is imported; if you trust it, pass --allow-import "
    "canary"
)


def imported() -> bool:
    """Return whether the module of the environment was imported, and forget it."""
    gymnasium.registry.pop("Canary-v0", None)
    return sys.modules.pop("canary", None) is not None


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Path]:
    """A folder with a run whose environment lies in a module, and files of settings that name it."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "modules").mkdir()
    (folder / "modules/canary.py").write_text(CANARY)
    write(folder / "mine.hdf5", columns(sizes=(3, 1)))
    sys.path.insert(0, str(folder / "modules"))
    own = {"env": ENV, "dataset": str(folder / "mine.hdf5"), "eval_episodes": 1}
    main(["train", *words(own | SMALL | {"run_dir": str(folder / "run")})])
    assert imported()
    (folder / "train.yaml").write_text(yaml.safe_dump(own | SMALL))
    fixed = {name: value for name, value in (own | SMALL).items() if name != "env"}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"envs": [ENV], "set": fixed}))
    yield folder
    sys.path.remove(str(folder / "modules"))


@pytest.fixture
def typed(trained: Path, tmp_path: Path, monkeypatch, capsys) -> Callable[[str], tuple[int, str]]:
    """Return a function that types a command in a copy of the folder, and returns exit code and errors."""
    for name in ("run", "train.yaml", "sweep.yaml"):
        copy = shutil.copytree if name == "run" else shutil.copy
        copy(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> tuple[int, str]:
        code = 0
        try:
            main(command.split())
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return code, capsys.readouterr().err

    return run


COMMANDS = {
    "train --config train.yaml --run-dir new": "train.yaml",
    "train --config train.yaml --print-config": "train.yaml",
    "train --resume run --steps 6": "run/config.yaml",
    "train --resume run/ckpt/step-00000004 --steps 6": "run/config.yaml",
    "profile --resume run --steps 6 --out profile": "run/config.yaml",
    "eval run": "run/config.yaml",
    "eval run/ckpt/step-00000004 --video film.gif": "run/config.yaml",
    "sweep sweep.yaml --plan": "sweep.yaml",
    "sweep sweep.yaml --plan --jobs 2": "sweep.yaml",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_promise_10_a_module_that_a_file_names_is_refused_by_every_command_and_imported_where_it_is_allowed(
    typed, command: str
):
    before = sorted(Path().rglob("*"))
    assert typed(command) == (2, f"error: {COMMANDS[command]} {REFUSED}\n")
    assert not imported() and sorted(Path().rglob("*")) == before
    if command.startswith("profile"):  # takes twenty seconds
        return
    code, said = typed(f"{command} --allow-import canary")
    assert code == 0, said
    assert imported() == (command.split()[0] != "sweep" and "--print-config" not in command)


@pytest.mark.parametrize(
    "command",
    [
        f"train --resume run --env {ENV} --steps 6",
        f"train --config train.yaml --env {ENV} --run-dir new",
        f"sweep sweep.yaml --env {ENV} --plan",
        "train --config train.yaml --env Pendulum-v1 --print-config",  # the file's is not the run's
    ],
)
def test_an_environment_that_is_typed_needs_no_other_flag(typed, command: str):
    code, said = typed(command)
    assert code == 0, said
    imported()


def test_the_command_that_is_typed_again_continues_its_run(typed, trained: Path):
    own = {"env": ENV, "dataset": str(trained / "mine.hdf5"), "eval_episodes": 1, "run_dir": "run"}
    code, said = typed(f"train {' '.join(words(own | SMALL | {'steps': 8}))}")
    assert code == 0 and "continuing from" in said and imported()


@pytest.mark.parametrize(
    "command",
    [
        "report run",
        pytest.param("latency run --seconds 0.001 --out out", marks=pytest.mark.long),
        pytest.param("export run --out policy.onnx", marks=pytest.mark.long),
    ],
)
def test_commands_that_build_no_environment_import_no_module_of_a_run(typed, command: str):
    code, said = typed(command)
    assert code == 0, said
    assert not imported()


@pytest.mark.parametrize(
    ("name", "fits"),
    [("Wraps-v0", False), ("gtp_fast.evaluation.mazes:gtp_fast/PointMaze-v0", False), ("canary:Wraps-v0", True)],
)
def test_an_argument_in_a_file_names_no_module_but_that_of_the_typed_environment(typed, name: str, fits: bool):
    made: Any = lambda env_id: gymnasium.make(env_id)  # noqa: E731
    gymnasium.register("Wraps-v0", made)  # as an installed package may
    kwargs = json.dumps({"env_id": ENV})
    Path("more.yaml").write_text(yaml.safe_dump({"env_kwargs": kwargs}))
    code, said = typed(f"train --config more.yaml --env {name} --print-config")
    assert (code == 0) == fits
    refused = f"error: more.yaml gives an environment the argument '{ENV}', and a file may not decide what is imported"
    assert fits or said.startswith(refused)
    Path("more.yaml").write_text(yaml.safe_dump({"envs": ["Hopper-v5"], "grid": {"env_kwargs": [{}, kwargs]}}))
    code, said = typed(f"sweep more.yaml --env {name} --plan")
    assert (code == 0) == fits and (fits or said.startswith(refused))
    gymnasium.registry.pop("Wraps-v0")
    assert not imported()


@pytest.mark.parametrize("key", ["allow_import", "allow-import"])
def test_a_file_cannot_allow_itself_anything(typed, key: str):
    Path("train.yaml").write_text(f"env: {ENV}\n{key}: [canary]\n")
    assert typed("train --config train.yaml")[0] == 2 and not imported()
    Path("sweep.yaml").write_text(f"envs: [{ENV}]\n{key}: [canary]\n")
    assert typed("sweep sweep.yaml --plan")[0] == 2 and not imported()


def test_from_python_a_run_says_what_it_may_import(typed):
    with pytest.raises(UsageError, match="pass --allow-import canary"):
        package.train(resume="run", steps=6)
    assert not imported()
    assert package.train(resume="run", steps=6, allow_import=["canary"]).steps == 6 and imported()


def test_reproduce_scores_a_run_only_with_what_is_allowed(typed):
    acting = {"sampling_steps": 1, "candidates": 1, "select": "argmax"}
    with pytest.raises(UsageError, match="pass --allow-import canary"):
        scores.figures(Path("run"), acting)
    assert not imported()
