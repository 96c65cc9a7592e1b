"""gtp-fast reproduce: ours beside the paper's where the data are its own, runs that are shared, kills that change
nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_cases import gtp_fast, logged_steps, started, wait_for

from bench import docs
from gtp_fast import train
from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import DataError, DivergedError, UsageError
from gtp_fast.experiments import figures, paper, report
from gtp_fast.experiments.reproduce import items, page, run, scores
from gtp_fast.experiments.reproduce.run import ReproduceConfig, plan, reproduce

TINY = (
    "hidden=16",
    "batch_size=8",
    "eval_episodes=1",
    "eval_max_steps=20",
    "backend=eager",
    "device=cpu",
    "candidates=1",
    "select=none",
)
SCORED = tuple(name for name in items.NAMES if name != "table9")


def asked(folder: Path, item: str, **changes: Any) -> ReproduceConfig:
    env = None if item == "fig7" else "hopper-demo-v0"
    values = {"env": env, "steps": 6, "runs": folder / "runs", "jobs": 2, "set": TINY}
    return ReproduceConfig(item, **values | changes)


def source(
    env: str = "hopper-medium-expert-v2", row: str | None = "hopper-me", absent: str | None = None
) -> run.Source:
    return run.Source({"env": env}, env, env, "ab" * 32, row, absent)


def train_here(request: ReproduceConfig, count: int | None = None) -> None:
    """Train the first runs of an item in this process, which has imported torch; the item finds them complete."""
    item = items.find(request.item, request.budget)
    planned = plan(item, request, run.choose(item, request.budget, request.env, request.dataset, None))
    trials = {one.trial.path: one.trial for one in planned}
    for trial in list(trials.values())[:count]:
        with suppress(DivergedError):
            train(**trial.settings, run_dir=str(trial.path))


@pytest.fixture(scope="module")
def table7(tmp_path_factory) -> tuple[Path, dict[str, Any], list[str]]:
    """Table 7 at toy size, whole; nothing below changes it."""
    folder, said = tmp_path_factory.mktemp("table7"), []
    train_here(asked(folder, "table7"), 1)
    return folder, reproduce(asked(folder, "table7"), said.append), said


def test_an_item_ends_with_a_report_and_a_second_call_trains_and_scores_nothing(table7):
    folder, found, said = table7
    assert sum("complete already" in line for line in said) == sum("started" in line for line in said) == 1
    assert len({row["run"] for row in found["rows"]}) == 2  # of four rows
    report = folder / "runs/table7/report"
    assert found["report"] == str(report) and len(found["rows"]) == 4
    assert all(len(row["last"]["each"]) == 2 for row in found["rows"])
    text, again = (report / "README.md").read_text(), []
    reproduce(asked(folder, "table7"), again.append)
    assert (report / "README.md").read_text() == text and not [line for line in again if "started" in line]
    assert "6 steps are 0.0003 % of the paper's" in text and "the data are not the paper's" in text
    assert "112.2" not in text and "53.9" not in text


def test_a_table_has_a_picture_of_every_row_diverged_ones_and_several_data_sets_too(table7):
    _, found, _ = table7
    assert Image.open(Path(found["report"], "table7.png")).size[0] > 500
    done = {"method": "good", "paper": {"mean": 3.0}, "status": "done", "last": {"each": [1.0, 2.0]}}
    bad = {"method": "bad", "paper": {}, "status": "diverged at step 9"}
    rows = [row | {"data": data} for data in ("one", "two") for row in (done, bad)]
    moved = [row | ({"last": {"each": [1.0, 2.5]}} if "last" in row else {}) for row in rows]
    pictures_of = [figures.table(each, "Table") for each in (rows, rows, moved, rows[:2])]
    assert pictures_of[0] == pictures_of[1] and len(set(pictures_of)) == 3


def test_last_and_best_stand_apart_and_acting_otherwise_has_no_best(table7):
    _, found, _ = table7
    trained, chosen = found["rows"][:2]
    assert trained["best"]["mean"] >= trained["last"]["mean"] and chosen["best"] is None
    assert chosen["acting"] == {"sampling_steps": 5, "candidates": 50, "select": "argmax"}


@pytest.mark.crash
def test_a_killed_parent_is_followed_by_one_that_ends_with_the_report_and_trains_no_step_twice(tmp_path: Path):
    typed = ["reproduce", "table7", "--env", "hopper-demo-v0", "--steps", "200", "--jobs", "1"]
    sets = [word for text in (*TINY, "log_every=20", "save_every=20", "eval_every=200") for word in ("--set", text)]
    first = started([*typed, "--runs", str(tmp_path), *sets])
    wait_for(lambda: list(tmp_path.glob("small/*/gtp*/ckpt/step-*")))
    first.kill()
    first.communicate()
    second = gtp_fast(*typed, "--runs", str(tmp_path), *sets)
    assert second.returncode == 0, second.stderr
    summary = json.loads((tmp_path / "table7/report/summary.json").read_text())
    assert [row["status"] for row in summary["rows"]] == ["done"] * 4
    runs = list(tmp_path.glob("small/*/gtp*"))
    assert len(runs) == 2 and all(logged_steps(run) == list(range(20, 201, 20)) for run in runs)


@pytest.mark.long
def test_a_diverged_run_is_a_row_that_says_so_and_takes_nothing_with_it(tmp_path: Path, monkeypatch):
    rows = (items.Row("good", items.GTP), items.Row("bad", items.GTP | {"lr": 1e6, "grad_norm": 0.0, "log_every": 5}))
    monkeypatch.setattr(items, "find", lambda name, budget: items.Item(name, "Table 3: toy", rows=rows))
    train_here(asked(tmp_path, "table3", steps=200, seeds=1))
    found = reproduce(asked(tmp_path, "table3", steps=200, seeds=1), lambda line: None)
    text = Path(found["report"], "README.md").read_text()
    assert found["exit_code"] == 0 and "| bad | **diverged at step " in text and "last" in found["rows"][0]


@pytest.mark.long
def test_the_four_goals_have_masses_costs_and_a_picture(tmp_path: Path, monkeypatch):
    rows = items.find("fig7", "small").rows
    monkeypatch.setattr(scores, "SECONDS", 0.01)
    train_here(asked(tmp_path, "fig7", steps=4, seeds=1))
    found = reproduce(asked(tmp_path, "fig7", steps=4, seeds=1), lambda line: None)
    shown = {row["method"]: row for row in found["rows"]}
    assert min(shown["data"]["masses"]) > 0.2 and shown["data"]["off"] < 0.03
    costs = {name: row["network_evaluations"] for name, row in shown.items() if name != "data"}
    assert costs == {row.method: int(row.method[-1]) for row in rows} and len(costs) >= 3
    assert all(row["us_torch"]["median_us"] > 0 for name, row in shown.items() if name != "data")
    assert Image.open(Path(found["report"], "fig7.png")).size[0] > 1000


def test_the_sweeps_are_drawn_without_what_diverged():
    figure = {"last": {"each": [1.0, 2.0]}, "kind": "score"}
    rows = [{"panel": name, "x": x} | figure for name in ("K", "own K", "eta") for x in (1, 2.5)]
    png = figures.sweeps([*rows, {"panel": "eta", "x": 10.0}])
    assert png.startswith(b"\x89PNG")


def test_every_row_of_every_item_is_a_setting_that_can_be_run(tmp_path: Path):
    faults = {}
    for name in SCORED:
        for budget in ("small", "paper"):
            item = items.find(name, budget)
            there = source("multigoal-v0", None) if name == "fig7" else source()
            for row in item.rows:
                asked_for = ReproduceConfig(name, budget, runs=tmp_path)
                try:
                    plan(items.Item(name, "", rows=(row,), kind=item.kind), asked_for, [there])
                except UsageError as error:
                    faults[f"{name}, {budget}, {row.method}"] = str(error)
    assert faults == {}


def _paths(item: str, rows: tuple[items.Row, ...], **changes: Any) -> list[str]:
    planned = plan(items.Item(item, "", rows=rows), asked(Path("x"), item, set=(), **changes), [source()])
    return [one.trial.path.name for one in planned]


def test_items_share_the_run_of_what_is_the_same_setting_and_no_other():
    same = (items.Row("a", items.GTP), items.Row("b", items.GTP | {"eta": 5.0}), items.Row("c", {"algo": "gtp"}))
    assert len(set(_paths("table2", same) + _paths("fig6", same))) == 1
    other = (
        items.Row("d", items.GTP | {"sampling_steps": 2}),
        items.Row("e", items.GTP | {"bc": True}),
        items.Row("f", {"algo": "cac"}),
    )
    assert len({*_paths("table2", (*same, *other)), *_paths("table2", same, seeds=3)}) == 5


def test_budgets_decide_steps_seeds_and_preset(tmp_path: Path):
    rows = (items.Row("GTP", items.GTP),)
    for budget, expected in (("small", (8_000, 2, "stable")), ("paper", (2_000_000, 5, "paper"))):
        one = plan(items.Item("table2", "", rows=rows), ReproduceConfig("table2", budget), [source()])[0]
        assert (one.cfg.steps, one.cfg.seeds, one.cfg.preset) == expected
    assert len(items.find("table2", "paper").tasks) == 9 and items.find("table3", "paper").tasks == (items.ABLATED,)


def test_the_papers_cells_are_those_printed_and_only_beside_its_data():
    row = items.Row("GTP", items.GTP, paper=("ablation", "GTP (ours)"))
    assert run._beside(source(), row) == {"mean": 112.2, "std": 0.6, "hours": 4.26}
    assert run._beside(source(absent="other data"), row) == {"absent": "other data"}
    cells = [
        items.Row("", {}, paper=("ablation", "lin. Q, 0.1")),
        items.Row("", {}, paper=("schedule", "GTP w/ fixed N")),
    ]
    assert [run._beside(source(), row)["word"] for row in cells] == ["diverged", "not legible"]
    assert paper.cell("recent", "hopper-me", "FQL") == (104.6, None)
    named = [row.paper for name in SCORED for row in items.find(name, "small").rows if row.paper]
    assert all(column in paper.tables()[table]["hopper-me"] for table, column in named)


def test_data_that_cannot_be_had_end_with_code_3_and_name_those_that_need_no_network(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("GTP_FAST_D4RL_URL", "http://127.0.0.1:9/none")
    with pytest.raises(DataError, match=r"--env hopper-demo-v0 .embedded, needs no network") as refused:
        reproduce(asked(tmp_path, "table2", env=None), lambda line: None)
    assert refused.value.exit_code == 3 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item": "fig7", "env": "hopper-demo-v0"}, "leave out --env"),
        ({"dataset": Path("x.hdf5"), "env": None}, "needs --env"),
        ({"set": ("steps=3",)}, "--set: steps cannot be set here; use --steps"),
        ({"set": ("hiden=3",)}, "did you mean hidden"),
        ({"set": ("eval_every=0",)}, "leaves a row without a score"),
        ({"steps": 0}, "--steps 0 is outside"),
        ({"item": "tabel2"}, "did you mean table2"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_by_name(tmp_path: Path, changes, words):
    item = changes.pop("item", "table2")
    with pytest.raises(UsageError, match=words):
        reproduce(asked(tmp_path, item, **changes), lambda line: None)


def test_table9_of_an_installed_package_says_that_a_checkout_is_needed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    with pytest.raises(UsageError, match="source checkout"):
        reproduce(asked(tmp_path, "table9"), lambda line: None)


def test_the_interval_over_tasks_resamples_within_each_task():
    # Two tasks of constant seeds: any resample within tasks is the data itself; across tasks it would spread.
    tasks = [np.array([0.0, 0.0, 0.0]), np.array([100.0, 100.0, 100.0])]
    assert report.stratified_interval(tasks) == (50.0, 50.0)
    low, high = report.stratified_interval([np.concatenate(tasks)]) or (0.0, 0.0)
    assert low < 50 < high
    assert report.stratified_interval([np.array([1.0, 2.0]), np.array([3.0])]) is None


def test_the_average_over_tasks_is_that_of_each_seed():
    rows = [{"method": "m", "last": {"each": each}} for each in ([10.0, 20.0], [30.0, 50.0])]
    found = scores.over_tasks(rows) or {}
    assert (found["mean"], found["std"], found["tasks"]) == (27.5, 7.5, 2)  # 20 and 35
    assert found["iqm"] == 25.0  # of 10, 20, 30, 50
    assert scores.over_tasks([*rows, {"method": "m", "status": "diverged at step 3"}]) is None


def test_the_speed_is_the_median_of_the_log_intervals(tmp_path: Path):
    (tmp_path / "train.log").write_text(
        "start\nstep 1,000 2.0 steps/s a 1\nstep 2,000 50.0 steps/s\nstep 3 40.0 steps/s\n"
    )
    assert scores.speed(tmp_path, 72_000) == {"ms_per_step": 25.0, "hours": 0.5}
    assert scores.speed(tmp_path / "none", 1) == {"ms_per_step": None, "hours": None}


def test_the_docs_show_the_committed_reports_and_a_changed_one_is_seen(monkeypatch, tmp_path: Path):
    text = (docs.tables.ROOT / "docs/reproduce.md").read_text()
    assert docs.filled("docs/reproduce.md", text) == text
    measured = {"item": "table9", "title": "Table 9", "kind": "bench", "command": "gtp-fast reproduce table9"}
    summary = measured | {"reach": "Times.", "table": "| a |", "rows": [], "notes": [], "pictures": ["a.png"]}
    report = tmp_path / "runs/table9/report"
    report.mkdir(parents=True)
    (report / "summary.json").write_text(json.dumps(summary))
    (report / "a.png").write_bytes(b"png")
    for name in ("RESULTS", "IMAGES"):
        monkeypatch.setattr(docs, name, tmp_path)
    assert docs.take_over(tmp_path / "runs") == ["table9"] and (tmp_path / "a.png").read_bytes() == b"png"
    shown = docs.filled("docs/reproduce.md", text)
    assert shown != text and page.body(summary) in shown and "(images/a.png)" in shown


def test_names_of_runs_fit_a_file_system():
    cfg, published = run_settings({"env": "multigoal-v0", "lr": 0.5}), run_settings({"env": "multigoal-v0"})
    assert run._name(cfg, published) == "gtp-bc-lr-0.5"
    assert "/" not in run._name(TrainConfig(env="a/b", etas="1,2/3"), TrainConfig(env="a/b"))
