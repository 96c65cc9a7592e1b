"""gtp-fast sweep: grids validated before they run, runs that find their directories again, kills that change
nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_cases import columns, write
from places import ROOT, SUPPORT
from run_cases import gtp_fast, logged_steps, started, wait_for

from gtp_fast import train
from gtp_fast.cli.main import main
from gtp_fast.errors import DivergedError, UsageError
from gtp_fast.experiments.sweep import plan, run
from gtp_fast.experiments.sweep.plan import SweepConfig
from gtp_fast.experiments.sweep.table import Table, lines
from gtp_fast.experiments.trials import Outcome, Standing, Trial
from gtp_fast.locks import holder
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.records import Progress

TINY = {"hidden": 16, "batch_size": 8, "device": "cpu", "backend": "eager", "eval_every": 0, "steps": 4, "threads": 1}


def config(out: Path, **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {"envs": ("hopper-demo-v0",), "grid": {"lr": (1e-3, 1e-4)}, "set": TINY, "out": out}
    return SweepConfig(**values | changes)


def words(out: Path, *more: str, **changes: Any) -> list[str]:
    fixed = [word for name, value in (TINY | {"bc": True} | changes).items() for word in ("--set", f"{name}={value}")]
    return ["sweep", "--env", "hopper-demo-v0", "--out", str(out), *fixed, *more]


def paths(cfg: SweepConfig, jobs: int = 1) -> list[Path]:
    return [one.trial.path for one in plan.plan(cfg, jobs).trials]


def begun(path: Path) -> Path:
    RunDir(path).checkpoints.mkdir(parents=True)
    return path


def test_a_plan_has_every_combination_once_in_a_directory_of_its_own_that_stays_the_same(tmp_path: Path):
    grid = {"lr": (1e-3, 1e-4), "sampling_steps": (2, 5)}
    first = paths(config(tmp_path, envs=("multigoal-v0", "hopper-demo-v0"), grid=grid))
    assert len(set(first)) == 8
    turned = config(tmp_path, envs=("hopper-demo-v0", "multigoal-v0"), grid=dict(reversed(grid.items())))
    assert sorted(first) == sorted(paths(turned))
    larger = config(tmp_path, grid=grid | {"lr": (1e-3, 1e-4, 1e-5)})
    assert len(set(paths(larger))) == 6 and set(paths(config(tmp_path, grid=grid))) < set(paths(larger))
    assert not set(first) & set(paths(config(tmp_path, grid=grid, set=TINY | {"gamma": 0.9})))


def test_settings_that_decide_no_result_and_data_files_keep_runs_apart_where_they_are_varied(tmp_path: Path):
    several = paths(config(tmp_path, grid={"dataset": ("a/x.hdf5", "a_x.hdf5"), "log_every": (5, 10)}))
    assert len(set(several)) == 4
    other = paths(config(tmp_path, set=TINY | {"log_every": 5}))
    assert other == paths(config(tmp_path)) and other != paths(config(tmp_path, set=TINY | {"dataset": "x"}))


def test_combinations_that_mean_the_same_run_are_one(tmp_path: Path):
    found = plan.plan(config(tmp_path, grid={"eta": (1.0, 5.0), "bc": (True, False)}), 1)
    assert [one.point["eta"] for one in found.trials] == [0.0, 1.0, 5.0] and found.same == 1
    assert "1 combination left out" in plan.text(found)


@pytest.mark.parametrize(
    ("jobs", "seeds", "sizes"),
    [(1, 5, [5, 5]), (2, 5, [5, 5]), (3, 5, [3, 2, 3, 2]), (4, 4, [2] * 4), (100, 2, [1] * 4)],
)
def test_seeds_fill_one_process_first_and_spread_where_jobs_would_stay_idle(tmp_path: Path, jobs, seeds, sizes):
    found = plan.plan(config(tmp_path, seeds=seeds, set=TINY | {"seed": 7}), jobs)
    assert [one.cfg.seeds for one in found.trials] == sizes and found.jobs == min(jobs, len(sizes))
    assert [seed for row in plan.rows(found) for seed in row["seeds"]] == [*range(7, 7 + seeds)] * 2


def test_a_sweep_that_has_begun_keeps_its_seeds_together_under_another_number_of_jobs(tmp_path: Path):
    alone = begun(paths(config(tmp_path, seeds=4))[0])
    assert alone in paths(config(tmp_path, seeds=4), jobs=8)
    assert len(paths(config(tmp_path, seeds=4, seeds_per_trial=1), jobs=8)) == 8


def test_lists_for_the_members_of_a_run_are_not_split(tmp_path: Path):
    swept = config(tmp_path, seeds=2, grid={}, set=TINY | {"lrs": "1e-3,1e-4"})
    assert [one.cfg.seeds for one in plan.plan(swept, 8).trials] == [2]


def test_a_plan_says_what_runs_where_how_many_at_once_and_what_is_there(tmp_path: Path):
    begun(paths(config(tmp_path))[0])
    text = plan.text(plan.plan(config(tmp_path), 2))
    assert "1 data set x lr in 0.001, 0.0001 x 1 seed" in text and "2 trials (1 begun, 1 new)" in text
    assert all(str(path) in text for path in paths(config(tmp_path)))
    assert "2 at a time, " in text and "8 train steps in all, 8 of them" in text


def test_a_file_and_flags_ask_the_same_and_flags_stand_above_it(tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text("envs: [multigoal-v0]\nseeds: 2\ngrid: {lr: [3e-4, 1e-3], graph: [no]}\nset: {sampling-steps: 2}\n")
    typed = {
        "envs": ["multigoal-v0"],
        "seeds": 2,
        "grid": ["lr=3e-4,0.001", "graph=false"],
        "set": ["--sampling-steps=2"],
    }
    read = plan.read(file, {})
    assert read == plan.read(None, typed) and read.grid == {"lr": (3e-4, 1e-3), "graph": (False,)}
    above = plan.read(file, {"seeds": 3, "set": ["lr=1"], "grid": ["sampling_steps=4"]})
    assert (above.seeds, above.set, above.grid) == (3, {"lr": 1.0}, {"graph": (False,), "sampling_steps": (4,)})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--grid", "etaa=1,5"], "did you mean eta?"),
        (["--grid", "lr=1,x"], "--lr is 'x', expected float"),
        (["--grid", "lr=1,-1"], "hopper-demo-v0 lr=-1: --lr -1.0 is outside"),
        (["--grid", "algo=gpt"], "did you mean gtp?"),
        (["--grid", "seed=1,2"], "give --seeds N"),
        (["--grid", "lr=1", "--set", "lr=2"], "leave it out of one of them"),
        (["--grid", "lr=1", "--grid", "lr=2"], "stands twice"),
        (["--grid", "lr"], "write --grid NAME=VALUE,VALUE"),
        (["--set", "run_dir=x"], "is --out"),
        (["--set", "sampling_steps=two"], "expected int"),
        (["--seeds", "0"], "--seeds 0 is outside"),
        (["--jobs", "0"], "--jobs 0 is outside"),
        (["--gpus-per-trial", "0.5"], "is for --ray"),
        (["--jbos", "2"], "did you mean --jobs?"),
        (["absent.yaml"], "absent.yaml does not exist"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path: Path, capsys, more, said):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *more, *words(tmp_path / "out")[1:]])
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grids: {lr: [1]}", "sweep.yaml:1: no key is called 'grids'; did you mean grid?"),
        ("envs: [hopper-demo-v0]\nseeds: many", "sweep.yaml:2: seeds is 'many', expected a whole number"),
        ("envs: [1]", "expected a list of names"),
        ("envs: [a]\ngrid: {5: [1]}", "no setting is called 5"),
        ("envs: [a]\ngrid: {lr: []}", "has no values"),
        ("envs: [a]\nset: {lr: 1, --lr: 2}", "lr stands twice"),
        ("envs: !!python/object/apply:os.system [true]", "is not a YAML file"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_by_line(tmp_path: Path, text, said):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError) as refused:
        plan.read(tmp_path / "sweep.yaml", {})
    assert said in str(refused.value)


def test_the_examples_of_the_documents_are_sweeps_and_the_file_is_the_command(tmp_path: Path, monkeypatch, capsys):
    page = (ROOT / "docs/sweep.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    commands = re.findall(r"(gtp-fast sweep (?:--env|sweep\.yaml)[^`\n]*)", page)
    found = []
    for command in commands:
        if "--ray" in command:
            command = command.replace("--ray --gpus-per-trial 0.25", "--jobs 2")
        main([*shlex.split(command)[1:], "--plan", "--json"])
        found.append(json.loads(capsys.readouterr().out))
    assert len(found) == 3 and found[0] == found[1] and len(found[0]["trials"]) == 12


def test_ray_that_is_not_installed_is_named_with_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'gtp-fast\[sweep\]'"):
        run.prepare(config(tmp_path, ray=True))


def test_a_cluster_that_does_not_answer_is_named_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"no Ray answers at RAY_ADDRESS=127\.0\.0\.1:1"):
        run.prepare(config(tmp_path, ray=True))


def test_the_exit_code_is_the_worst_of_the_trials():
    done, diverged = Outcome("done"), Outcome("diverged", "", 4)
    assert [run.exit_code(some) for some in ([done], [done, diverged])] == [0, 4]
    assert run.exit_code([Outcome("failed", "", 3), diverged, Outcome("failed", "", 1)]) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def standing(name: str, state: Any, folder: Path = Path("absent")) -> Standing:
    return Standing(Trial(name, {}, folder / name, 100), state, 1)


def test_the_table_shows_where_each_trial_is_and_is_drawn_over_itself(tmp_path: Path):
    run_dir = RunDir(tmp_path / "a")
    run_dir.evaluations.mkdir(parents=True)
    run_dir.log.write_text("start  at step 0\nstep 1,000 52.3 steps/s actor_loss 1\nstep 1,0")
    run_dir.evaluation(5).write_text(json.dumps({"scores": [[1.0, 2.0], [3.0, 4.0]], "returns": []}))
    screen = Terminal()
    table = Table(screen)
    table.watch([standing("a", "running", tmp_path), standing("b", "waiting")])
    assert "1,000/100" in screen.getvalue() and "52.3" in screen.getvalue() and "2.5" in screen.getvalue()
    table.close()
    assert "\x1b[4F\x1b[J" in screen.getvalue() and screen.getvalue().count("1 running, 1 waiting") == 2
    pipe = io.StringIO()
    Table(pipe).say("a: started")
    assert pipe.getvalue() == "a: started\n"


def test_a_low_screen_shows_what_runs_and_counts_the_rest():
    several = [*(standing(f"w{i}", "waiting") for i in range(20)), standing("r", "running"), standing("d", "done")]
    shown = lines(several, [Progress()] * len(several), 5)
    assert len(shown) == 5 and [line.split()[0] for line in shown[1:4]] == ["w0", "r", "d"]
    assert shown[-1] == "1 running, 1 done, 20 waiting (19 not shown)"


def test_a_trial_that_diverged_is_a_result_that_the_report_names(tmp_path: Path):
    steps = TINY | {"bc": True, "steps": 60, "log_every": 10, "grad_norm": 0}
    planned, share = run.prepare(config(tmp_path, grid={"lr": (1e6, 1e-4)}, set=steps, jobs=2))
    bad, good = (one.trial for one in planned.trials)  # trained here: how their processes end, test_trials.py asks
    with pytest.raises(DivergedError):
        train(**bad.settings, run_dir=str(bad.path))
    train(**good.settings, run_dir=str(good.path))
    found = run.sweep(planned, share, Table(io.StringIO()))
    assert [row["state"] for row in found["trials"]] == ["diverged", "complete"] and found["exit_code"] == 4
    assert "Left out: hopper-demo-v0 lr=1e+06 seed 0 (diverged at step" in (tmp_path / "report/README.md").read_text()
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(json.dumps(found))


def training(out: Path) -> list[int]:
    """Return the processes that train with a metrics line written."""
    runs = [file.parent for file in out.glob("*/*/metrics.jsonl") if file.stat().st_size]
    held = [holder(RunDir(path).lock) for path in runs]
    return [int(words.split()[1]) for words in held if words and words.split()[1].isdigit()]


GRID = ("--grid", "lr=1e-3,1e-4", "--grid", "sampling_steps=2,5", "--jobs", "2")
LONGER = {"steps": 120, "log_every": 20, "save_every": 60}


@pytest.mark.long
def test_of_four_trials_one_is_killed_and_all_end_complete_and_typed_again_nothing_runs(tmp_path: Path):
    process = started(words(tmp_path, *GRID, "--json", **LONGER))
    os.kill(wait_for(lambda: training(tmp_path))[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and "trying again" in err, err
    found = json.loads(out)
    assert found["complete"] == 4 and [row["state"] for row in found["trials"]] == ["complete"] * 4
    assert all(logged_steps(Path(row["run"])) == list(range(20, 121, 20)) for row in found["trials"])
    assert len(json.loads((tmp_path / "report/summary.json").read_text())["settings"]) == 4
    again = gtp_fast(*words(tmp_path, *GRID, **LONGER))
    assert again.returncode == 0 and "4 trials (4 complete)" in again.stderr and "started" not in again.stderr
    assert "4 of 4 complete" in again.stdout


@pytest.mark.crash
def test_two_sweeps_share_the_trials_and_train_each_step_once_though_one_trial_is_killed(tmp_path: Path):
    both = [started(words(tmp_path, "--grid", "lr=1e-3,1e-4", "--json", **LONGER)) for _ in range(2)]
    os.kill(wait_for(lambda: training(tmp_path))[0], signal.SIGKILL)
    ended = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    found = [json.loads(out) for out, _ in ended]
    assert found[0]["complete"] == found[1]["complete"] == 2
    assert all(logged_steps(Path(row["run"])) == list(range(20, 121, 20)) for row in found[0]["trials"])


def _held(out: Path) -> list[int]:
    """Stop each process that trains, so that none ends before the others are seen; return them."""
    pids = training(out)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def _signalled(pid: int) -> set[int]:
    """Return the signals that wait for a stopped process, or one that is about to stop."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (waiting,) = (int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))
    return {number for number in signal.Signals if waiting >> (number - 1) & 1} - {signal.SIGSTOP}


TWO = ["--grid", "lr=1e-3,1e-4", "--jobs", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "count", "stop", "code"),
    [
        ([], 1, signal.SIGTERM, 143),
        pytest.param(TWO, 2, signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param([*TWO, "--ray"], 2, signal.SIGINT, 130, marks=pytest.mark.long),
    ],
    ids=["one", "two", "ray"],
)
def test_an_interrupted_sweep_saves_what_it_trains_and_continues_when_it_is_typed_again_until_nothing_is_left(
    tmp_path: Path, capsys, more: list[str], count: int, stop: signal.Signals, code: int
):
    typed = words(tmp_path, *more, **LONGER | {"save_every": 10_000})
    process = started(typed)
    pids = wait_for(lambda: len(found := _held(tmp_path)) == count and found)
    process.send_signal(stop)
    wait_for(lambda: all(map(_signalled, pids)))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code and "have saved what they had" in err, err
    assert len(list(tmp_path.glob("*/*/ckpt/step-*"))) == count
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    main([*typed, "--json"])
    again = capsys.readouterr()
    assert f"({count} begun)" in again.err
    found = json.loads(again.out)
    assert found["complete"] == count and [row["state"] for row in found["trials"]] == ["complete"] * count
    assert all(logged_steps(Path(row["run"])) == list(range(20, 121, 20)) for row in found["trials"])
    assert len(json.loads((tmp_path / "report/summary.json").read_text())["settings"]) == count
    main(typed)
    last = capsys.readouterr()
    assert (
        f"({count} complete)" in last.err and "started" not in last.err and f"{count} of {count} complete" in last.out
    )


@pytest.mark.slow
def test_ctrl_c_of_a_terminal_reaches_a_trial_through_its_sweep_alone(tmp_path: Path):
    process = started(words(tmp_path, **LONGER | {"save_every": 10_000}), start_new_session=True)
    (pid,) = wait_for(lambda: _held(tmp_path))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all that it started
    wait_for(lambda: signal.SIGTERM in _signalled(pid))
    assert _signalled(pid) == {signal.SIGTERM}
    os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "have saved what they had" in err, err
    assert len(list(tmp_path.glob("*/*/ckpt/step-*"))) == 1


HOSTILE = ("json", "torch", "numpy", "random", "gtp_fast", "gymnasium", "yaml")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], pytest.param(["--ray"], marks=pytest.mark.long)], ids=["here", "ray"])
def test_files_of_the_working_directory_shadow_no_module_of_a_trial(tmp_path: Path, more: list[str]):
    for name in HOSTILE:
        text = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r}); raise SystemExit('shadowed')"
        (tmp_path / f"{name}.py").write_text(text)
    write(tmp_path / "mine.hdf5", columns(sizes=(3, 1)))
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", SUPPORT)))
    settings = TINY | {"dataset": "mine.hdf5", "algo": "td3bc", "eval_every": 4, "eval_episodes": 1}
    fixed = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    typed = ["sweep", "--env", "own_envs:Unversioned", "--out", "out", *fixed, *more, "--json"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gtp_fast", *typed],  # the search path of the script gtp-fast
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["trials"]
    assert (row["state"], row["figure"]) == ("complete", 4.0)  # scored by the module that the sweep found too


@pytest.mark.long
def test_a_trial_finds_a_module_in_the_folder_where_its_sweep_does(tmp_path: Path):
    write(tmp_path / "mine.hdf5", columns(sizes=(3, 1)))
    shutil.copy(SUPPORT / "own_envs.py", tmp_path / "envs_of_mine.py")
    settings = TINY | {"dataset": "mine.hdf5", "algo": "td3bc", "eval_every": 4, "eval_episodes": 1}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"envs": ["envs_of_mine:Unversioned"], "set": settings}))
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    typed = ("sweep", "sweep.yaml", "--out", "out", "--json", "--allow-import", "envs_of_mine")
    done = gtp_fast(*typed, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})  # python -m gtp_fast
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"][0]["figure"] == 4.0
