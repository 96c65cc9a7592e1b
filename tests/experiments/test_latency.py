"""`gtp-fast latency` times every point that a policy has, on a real run, and fits lines that a known line passes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from run_cases import tiny

from gtp_fast.cli.main import main
from gtp_fast.errors import UsageError
from gtp_fast.experiments import latency
from gtp_fast.experiments.latency import LatencyConfig, latency_run
from gtp_fast.policy import export
from gtp_fast.policy.policy import load_policy
from gtp_fast.training.train import train

QUICK = LatencyConfig(device="cpu", seconds=1e-6)
MANY = 24  # times 50 candidates is more than latency.MANY_ROWS, as 256 are


@pytest.fixture(autouse=True)
def _smaller_batches(monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (1, MANY))


def points(found: dict) -> set[tuple]:
    return {(row["backend"], row["batch"], row["candidates"], row["sampling_steps"]) for row in found["rows"]}


@pytest.mark.parametrize("onnx", [False, pytest.param(True, marks=pytest.mark.long)], ids=["no onnx", "onnx"])
def test_every_backend_batch_candidate_and_step_is_timed_and_written(run: Path, monkeypatch, onnx: bool):
    if not onnx:
        monkeypatch.setitem(export.FORMATS, "onnx", (".onnx", ("no_such_package",)))
    found = latency_run(run, QUICK)
    few = {(b, 1, c, k) for b in ("numpy", "torch") for c in (1, 50) for k in range(1, 11)}
    many = {(b, MANY, 1, k) for b in ("numpy", "torch") for k in range(1, 11)}
    most = {(b, MANY, 50, k) for b in ("numpy", "torch") for k in (1, 2, 5, 10)}
    files = {("onnx", batch, candidates, 2) for batch in (1, MANY) for candidates in (1, 50)}  # in its own K
    assert points(found) == few | many | most | (files if onnx else set())
    assert all(0 < row["p20_us"] <= row["median_us"] <= row["p80_us"] and row["calls"] >= 3 for row in found["rows"])
    assert len(found["fits"]) == 8
    assert Path(found["picture"]) == run / "report/latency.png"
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "report/latency.json").read_text())["rows"] == found["rows"]


def test_behaviour_cloning_has_no_candidates_to_time(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (1,))
    monkeypatch.setitem(export.FORMATS, "onnx", (".onnx", ("no_such_package",)))
    cloned = train(tiny(tmp_path, steps=10, bc=True)).run_dir
    assert {row["candidates"] for row in latency_run(Path(cloned), QUICK)["rows"]} == {1}


def test_the_command_prints_one_object_and_writes_where_asked(run: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(latency, "BATCHES", (3,))
    monkeypatch.setattr(latency, "CANDIDATES", (2,))
    monkeypatch.setattr(latency, "STEPS", (1, 2))
    main(["latency", str(run), "--seconds", "1e-6", "--device", "cpu", "--seed", "1", "--out", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["seed"] == 1 and found["picture"] == str(tmp_path / "latency.png")
    ways = {(way, 3, 2, k) for way in ("numpy", "torch") for k in (1, 2)}
    assert points(found) == ways | {("onnx", 3, 2, 2)}
    assert (tmp_path / "latency.json").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (LatencyConfig(device="cpu", seconds=0), r"--seconds 0 is outside \(0, 3600\)"),
        (LatencyConfig(device="cpu", seed=7), r"the run has seeds \[0, 1\], not 7"),
    ],
    ids=["seconds", "seed"],
)
def test_what_cannot_be_asked_is_refused(run: Path, asked, words):
    with pytest.raises(UsageError, match=words):
        latency_run(run, asked)


def test_the_fit_finds_the_line_that_the_medians_lie_on():
    rows = [
        {"backend": "b", "batch": 1, "candidates": 1, "sampling_steps": k, "median_us": 30.0 + 7.0 * k}
        for k in (1, 2, 5, 10)
    ]
    (line,) = latency.fits(rows)
    assert line["fixed_us"] == pytest.approx(30) and line["step_us"] == pytest.approx(7)
    assert latency.fits(rows[:1]) == []


def test_calls_take_turns_and_each_time_is_its_own():
    order = []
    calls = {
        name: lambda name=name, s=s: (order.append(name), time.sleep(s)) for name, s in (("a", 0.004), ("b", 0.001))
    }
    times = latency.interleaved(calls, 0.01)
    assert len(times["a"]) >= 3 and np.median(times["a"]) >= 4e3 > np.median(times["b"]) >= 1e3
    assert order.index("b", 2) < len(order) - 1 - order[::-1].index("a")  # one is not done before the other begins


def test_a_policys_plain_form_acts_alike(run: Path):
    policy = load_policy(run, seed=0, device="cpu", candidates=4, select="argmax")
    obs = np.random.default_rng(0).normal(size=(5, 17)).astype(np.float32)
    assert (policy.runtime, policy.reference().runtime) == ("numpy", "torch")
    # Sums of float32 in another order, from noise of up to 80 sigma: 2^-24 80 z.
    assert np.abs(policy.reference().act(obs) - policy.act(obs)).max() < 2e-5
