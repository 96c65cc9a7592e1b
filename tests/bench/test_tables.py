"""The timing table says what was measured and printed: ratios, the paper's cells, and the numbers of the docs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from run_cases import tiny

from bench import docs, runs, tables
from bench.training import config
from gtp_fast.cli.main import main
from gtp_fast.training.train import train

MACHINE = {"device": "cpu", "processor": "one", "torch": "2", "commit": "abc"}


def measured(group: str, us: float, **info) -> dict:
    """One benchmark as pytest-benchmark describes it."""
    stats = {"median": us / 1e6, "data": [us / 1e6] * 3, "rounds": 3}
    return {"group": group, "name": group, "stats": stats, "extra_info": {**MACHINE, "us": us, **info}}


def step(us: float, switch: str, **info) -> dict:
    row = {"method": "gtp-k5", "algo": "gtp", "switch": switch, "sampling_steps": 5, "seeds": 1, "batch_size": 256}
    return measured(f"step/gtp/{switch}", us, **(row | info))


def act(us: float, way: str, candidates: int = 1) -> dict:
    row = {"method": "gtp-k5", "algo": "gtp", "way": way, "sampling_steps": 5, "batch_size": 1}
    return measured("latency/gtp/5", us, **row, candidates=candidates)


RUN = [
    step(7_740, "eager"),
    step(3_870, "compiled"),
    step(15_480, "eager+8seeds", seeds=8),
    act(470, "torch"),
    act(94, "numpy"),
    act(900, "numpy", candidates=50),
]


def rows() -> dict[str, dict[str, str]]:
    found = tables.cells(tables.gathered(copy.deepcopy(RUN)))
    heads = [head if tables.HEADS.index(head) == i else f"{head} {i}" for i, head in enumerate(tables.HEADS)]
    return {cells[1]: dict(zip(heads, cells, strict=True)) for cells in found}


def test_hours_and_ratios_are_those_of_two_million_steps_and_of_the_printed_hours():
    eager = rows()["eager"]
    assert (eager["steps / s"], eager["hours for 2M"], eager["paper, hours"]) == ("129", "4.3", "4.3")
    assert (eager["ratio"], eager["vs own eager"]) == ("1", "1.00")
    assert rows()["compiled"]["vs own eager"] == "0.50"


def test_several_seeds_count_a_step_of_each():
    assert rows()["eager + 8 seeds"]["vs own eager"] == "0.25"
    assert rows()["eager + 8 seeds"]["hours for 2M"] == "1.07"


def test_the_eager_row_acts_by_the_formulas_and_the_others_the_fastest_way():
    eager, compiled = rows()["eager"], rows()["compiled"]
    assert (eager["ms / action"], eager["us / sampling step"]) == ("0.47", "94")
    assert (compiled["ms / action"], compiled["ratio 12"], compiled["ms / action of 50"]) == ("0.094", "0.10", "0.9")


@pytest.mark.parametrize(
    ("method", "algo", "k", "hours"),
    [
        ("gtp-k5", "gtp", 5, 4.3),
        ("gtp-k2", "gtp", 2, 3.8),
        ("dql", "dql", 5, 7.1),
        ("cac", "cac", 2, 3.7),
        ("fql-4x512", "fql", 10, 10.0),
    ],
)
def test_each_row_of_table_9_stands_beside_its_method(method, algo, k, hours):
    printed = tables._printed({"method": method, "algo": algo, "sampling_steps": k})
    assert printed is not None and printed["train_h"] == hours


@pytest.mark.parametrize("method", ["gtp-bc", "fql-3x256", "iql", "td3bc"])
def test_a_method_that_the_paper_did_not_time_has_no_number_beside_it(method):
    assert tables._printed({"method": method, "algo": method.split("-")[0], "sampling_steps": 5}) is None


def test_only_a_whole_run_is_written_and_is_read_back(tmp_path: Path):
    part = tables.gathered(copy.deepcopy(RUN))
    assert not tables.whole(part)
    more = [measured(f"{kind}/x", 1.0) for kind in ("kernel", "data", "eval")]
    full = tables.gathered(copy.deepcopy(RUN) + more)
    assert tables.whole(full)
    assert tables.write(full, tmp_path).read_text() == tables.markdown(tables.read(tmp_path / "cpu.json"))


def test_a_file_of_benchmark_json_gives_the_same_table(tmp_path: Path):
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"benchmarks": RUN}))
    assert tables.markdown(tables.read(file)) == tables.markdown(tables.gathered(copy.deepcopy(RUN)))


@pytest.mark.parametrize("page", docs.PAGES)
def test_the_numbers_of_the_docs_are_those_of_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert docs.filled(page, text) == text


def test_a_changed_number_in_the_docs_is_seen():
    page = "docs/performance.md"
    text = (ROOT / page).read_text()
    spoiled = text.replace("| GTP | eager | 5 | 256 | ", "| GTP | eager | 5 | 256 | 1", 1)
    assert spoiled != text and docs.filled(page, spoiled) != spoiled


def test_a_table_of_returns_holds_each_seed_with_mean_and_spread(tmp_path: Path, capsys):
    run = train(tiny(tmp_path, algo="td3bc", bc=True, sampling_steps=1)).run_dir
    capsys.readouterr()
    main(["eval", run, "--episodes", "2", "--json"])
    file = tmp_path / "eval.json"
    file.write_text(capsys.readouterr().out)
    found = runs.returns("some", [str(file)])
    each = [np.mean(scores) for scores in json.loads(file.read_text())["scores"]]
    assert found["rows"][0]["each"] == pytest.approx(each, rel=1e-2)
    assert f"| {np.mean(each):.1f} ({np.std(each):.1f}) |" in runs.returns_table(found)
    assert "SHA-256" in found["machine"]["data"] and found["rows"][0]["setting"] == "TD3BC-BC, K = 1"


@pytest.mark.parametrize("algo", ["gtp", "dql", "cac", "fql", "iql", "td3bc"])
def test_the_bench_has_the_settings_of_every_algorithm(algo):
    cfg = config(algo=algo, sampling_steps=7)
    assert (cfg.algo, cfg.device, cfg.backend, cfg.sampling_steps) == (algo, "cpu", "eager", 7)
