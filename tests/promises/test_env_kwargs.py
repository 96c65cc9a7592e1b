"""An environment that needs arguments: `--env-kwargs` reaches all that builds it, from the first check to the film."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from data_cases import columns, write

from gtp_fast.cli.main import main
from gtp_fast.presets import read_yaml

ARM = {"length": [1, [2.5, None]], "name": "left 'hand'"}
KWARGS = json.dumps({"arm": ARM})
SMALL = "--algo td3bc --steps 4 --eval-every 4 --eval-episodes 1 --hidden 8 --batch-size 8 --backend eager --threads 1"


class Done(NamedTuple):
    """A command's exit code and outputs."""

    returncode: int
    stdout: str
    stderr: str


Typed = Callable[..., Done]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch, capsys) -> Typed:
    """Return a function that types a command in the test's folder; every process notes the arm that it was given."""
    write(tmp_path / "mine.hdf5", columns(sizes=(3, 1)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEEN_ARMS", str(tmp_path / "arms"))

    def run(*words: str) -> Done:
        code = 0
        try:
            main(list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Done(code, *capsys.readouterr())

    return run


def arms(folder: Path) -> dict[int, list[object]]:
    """Return the arms that each process was given, and forget them."""
    found: dict[int, list[object]] = {}
    for line in (folder / "arms").read_text().splitlines():
        pid, arm = json.loads(line)
        found.setdefault(pid, []).append(arm)
    (folder / "arms").unlink()
    return found


def test_arguments_reach_the_check_the_worker_a_later_evaluation_and_its_film(tmp_path: Path, typed):
    own = ["--env", "own_envs:Armed-v0", "--dataset", "mine.hdf5"]
    refused = typed("train", *own, *SMALL.split())
    assert refused.returncode == 2 and "needs the argument 'arm'; give it as --env-kwargs" in refused.stderr
    (tmp_path / "arms").write_text("")
    done = typed("train", *own, "--env-kwargs", KWARGS, *SMALL.split(), "--run-dir", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["return_last"] == [4.0]
    seen = arms(tmp_path)
    assert seen.keys() - {os.getpid()}  # the worker
    assert all(arm == ARM for given in seen.values() for arm in given)
    assert read_yaml(tmp_path / "run/config.yaml")["env_kwargs"] == json.dumps({"arm": ARM}, sort_keys=True)
    filmed = "eval run --episodes 2 --workers 1 --video film.gif --json --allow-import own_envs"
    later = typed(*filmed.split())
    assert later.returncode == 0, later.stderr
    assert (tmp_path / "film.gif").stat().st_size > 0
    assert all(arm == ARM for given in arms(tmp_path).values() for arm in given)
    other = typed("train", *own, "--env-kwargs", '{"arm": 1}', *SMALL.split(), "--run-dir", "run")
    assert other.returncode == 2 and "is a run with other settings (--env-kwargs" in other.stderr


def test_data_check_passes_the_arguments_on_to_the_command_that_it_prints(tmp_path: Path, typed):
    done = typed("data", "check", "mine.hdf5", "--env", "own_envs:Armed-v0", "--env-kwargs", KWARGS)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert (
        """--env own_envs:Armed-v0 --env-kwargs '{"arm": {"length": [1, [2.5, null]], "name": "left '"'"'hand""" in said
    )
    assert typed("data", "info", "mine.hdf5", "--env", "own_envs:Armed-v0", "--env-kwargs", KWARGS).returncode == 0


def test_data_check_names_a_missing_argument(typed):
    done = typed("data", "check", "mine.hdf5", "--env", "own_envs:Armed-v0", "--action-units", "scaled")
    assert "note: the environment own_envs:Armed-v0 needs the argument 'arm'; give it as --env-kwargs" in done.stderr


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [('{"shape": [9]}', "has observations of shape (9,) but the data have 3 numbers"), ('{"shape": [3]}', "")],
    ids=["other", "same"],
)
def test_data_check_holds_the_data_to_the_environment_that_the_arguments_make(typed, kwargs: str, said: str):
    kwargs = kwargs.replace("}", ', "dtype": "float32"}')
    done = typed("data", "check", "mine.hdf5", "--env", "own_envs:Camera-v0", "--env-kwargs", kwargs)
    assert done.returncode == (3 if said else 0) and said in done.stderr
    assert ("not ready: 1 fault" in done.stdout) == bool(said)


@pytest.mark.parametrize("action", ["check", "info"])
def test_data_commands_refuse_arguments_of_no_environment(typed, action: str):
    done = typed("data", action, "mine.hdf5", "--env-kwargs", KWARGS)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --env-kwargs are the arguments of --env; name the environment with --env\n",
    )
    done = typed("data", action, "mine.hdf5", "--env", "own_envs:Armed-v0", "--env-kwargs", "arm=1")
    assert done.returncode == 2 and "expected a JSON object: --env-kwargs" in done.stderr
