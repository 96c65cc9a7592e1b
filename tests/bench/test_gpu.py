"""`make gpu` without a GPU: no fault of a row costs another row, nothing wrong is timed, and all parts answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from eval_cases import runs
from places import ROOT

from bench import training
from bench.gpu import checks, instruments, plan, speed
from bench.gpu.__main__ import _machine, tests_failed
from bench.gpu.results import Results
from bench.gpu.supervise import NO_TIME, REASON, STOPPED, keep_log, measured, told
from bench.gpu.tables import LINES, markdown, text
from gtp_fast import device


def _rows(log: Path, *names: str, row_limit_s: float = 60.0, until_s: float = 60.0, **more: str) -> list[dict]:
    rows = [{"what": name, **more} for name in names]
    return list(measured("gpu_faults.measure", rows, False, row_limit_s, time.monotonic() + until_s, log))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "ValueError: first line ... second line"),
        ("die", "the process ended with SIGSEGV"),
        ("exit", "the process ended with exit code 7; its last line: last words"),
    ],
)
def test_a_row_that_fails_says_why_and_costs_no_other_row(tmp_path, fault, reason):
    rows = _rows(tmp_path / "log", "good", fault, "good")
    assert [row["what"] for row in rows] == ["good", fault, "good"]
    assert rows[1][REASON].startswith(reason) and "us" not in rows[1]
    assert rows[0]["us"] == rows[2]["us"] == 1.0


def test_an_error_leaves_its_process_to_the_rows_after_it(tmp_path):
    first, failed, last = _rows(tmp_path / "log", "good", "raise", "good")
    assert first["pid"] == last["pid"] and REASON in failed


def test_a_row_that_fails_leaves_its_whole_traceback_in_the_log(tmp_path):
    _rows(tmp_path / "log", "good", "raise", "die")
    said = (tmp_path / "log").read_text()
    assert "Traceback" in said and "first line\nsecond line" in said and "in measure" in said
    assert "'what': 'die'" in said.splitlines()[-1], "the row that died is named last"


def test_a_log_that_says_nothing_is_removed_and_a_long_one_keeps_both_ends(tmp_path):
    log = tmp_path / "log"
    _rows(log, "good")
    keep_log(log)
    assert not log.exists()
    log.write_bytes(b"begin" + b"x" * 10_000 + b"end")
    keep_log(log, limit=1_000)
    assert log.stat().st_size < 1_100 and log.read_bytes()[:5] == b"begin" and log.read_bytes()[-3:] == b"end"
    assert b"9,008 bytes are left out here" in log.read_bytes()


def test_a_compilers_message_is_told_with_its_reason_which_comes_last():
    assert told(ValueError("at 52:11:\n  x = y\n      ^\nNameError('y is not defined')")) == (
        "ValueError: at 52:11: ... NameError('y is not defined')"
    )


def test_a_row_that_hangs_is_ended_with_its_children(tmp_path):
    # The first row of a process has more time, to start it.
    rows = _rows(tmp_path / "log", "good", "hang", "good", row_limit_s=1.0, pids=str(tmp_path / "pids"))
    assert rows[1][REASON].startswith("stopped after 1 s") and rows[0]["us"] == rows[2]["us"] == 1.0
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert not runs(pid)


def test_rows_that_no_time_is_left_for_say_so(tmp_path):
    rows = _rows(tmp_path / "log", "good", "good", until_s=-1.0)
    assert [row[REASON] for row in rows] == [NO_TIME] * 2


def test_a_row_that_the_end_of_the_call_cuts_off_had_no_time(tmp_path):
    _rows(tmp_path / "log", "good")  # what processes are forked from has started then
    (row,) = _rows(tmp_path / "log", "hang", until_s=1.0, pids=str(tmp_path / "pids"))
    assert row[REASON] == NO_TIME


def test_a_part_whose_module_is_broken_answers_every_row(tmp_path):
    asked, until = [{"what": "a"}, {"what": "b"}], time.monotonic() + 60
    rows = list(measured("bench.gpu.no_such_module.measure", asked, True, 30.0, until, tmp_path / "log"))
    assert len(rows) == 2 and all("ModuleNotFoundError" in row[REASON] for row in rows)


def test_a_step_that_computes_something_else_is_not_timed(monkeypatch):
    cfg = training.config(**speed.DRY, graph=True)  # what it is held to is opened without a graph
    training.opened(cfg, 1)
    right = training.training
    monkeypatch.setattr(training, "training", lambda c: right(replace(c, sigma_data=0.4) if c.graph else c))
    with pytest.raises(ValueError, match="losses differ from eager fp32"):
        training.opened(cfg, 1)


def test_a_precision_that_the_backend_does_not_read_is_not_timed(monkeypatch):
    monkeypatch.setattr(device, "quicken_cpu", lambda: None)  # it may make fp32's products by another library,
    training._expected.cache_clear()  # and have made those of an earlier test
    with pytest.raises(ValueError, match="does not read precision"):
        training.opened(training.config(**speed.DRY, precision="tf32"), 1, exact=False)


@pytest.mark.parametrize(("name", "value"), [("backend", "fastest"), ("precision", "fp8")])
def test_a_setting_that_this_version_lacks_is_refused(name, value):
    row = {"backend": "eager", "graph": True, "precision": "fp32", "sampling_steps": 2, "seeds": 1} | {name: value}
    with pytest.raises(Exception, match=value):
        speed.settings(row, dry=True)


# What ncu prints of two launches: names quoted, thousands with commas, one line a metric, chatter before the head.
COUNTED = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","gtp_chain","Command line profiler metrics","gpu__time_duration.sum","ns","81,504"
"0","1","gtp_chain","Command line profiler metrics","launch__registers_per_thread","register/thread","128"
"1","1","gtp_heads","Command line profiler metrics","gpu__time_duration.sum","us","9.25"
"1","1","gtp_heads","Command line profiler metrics","no__such_metric","","n/a"
"""


def test_the_counters_are_read_launch_by_launch_in_microseconds():
    chain, heads = instruments.read(COUNTED)
    assert chain == {"kernel": "gtp_chain", "us": pytest.approx(81.504), "registers": 128.0}
    assert heads == {"kernel": "gtp_heads", "us": 9.25}
    assert instruments.read("==ERROR== ERR_NVGPUCTRPERM") == []


def test_what_is_slower_than_its_rival_says_so_beside_what_is_faster():
    figures = {"p20": 1.0, "p80": 1.0, "memory_mib": 1.0}
    steps = [
        plan.step_row("fused", "tf32") | figures | {"us": 100.0},
        plan.step_row("fused", "tf32", seeds=8) | figures | {"us": 1_600.0},
        plan.step_row("compiled", "tf32") | figures | {"us": 125.0},
    ]
    acts = [
        {"sampling_steps": 5, "candidates": 1, "where": where, "us": us}
        for where, us in (("cuda", 60.0), ("cpu", 40.0))
    ]
    known = {"machine": {"device": "Some GPU"}, "parts": {}}
    for name, rows in {"steps": steps, "latency": acts}.items():
        known["parts"][name] = {"commit": "a", "source": "b", "date": "2026", "rows": rows}
    page = markdown(known)
    assert "| fused tf32 | 5 | 100.0 | 1.0 - 1.0 | 1 | 3.33 | 0.80 of compiled |" in page
    assert "1.60 of compiled (slower)" in page and "| 5 | 1 | 60 | 40 | 1.50 of cpu (slower) |" in page


MARKED = """
import time
import pytest
pytestmark = pytest.mark.MARK
def test_passes(): pass
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("no such card")
""".replace("MARK", "gpu")  # this file holds no such test itself


def test_outcomes_of_the_marked_tests_are_counted(tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text(MARKED)
    found = checks.run_file({"file": str(file), "limit_s": 60.0}, True)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == ["test_fails: assert 1 == 2"] and found["skip_reasons"] == ["no such card"]


@pytest.mark.long
def test_a_file_of_tests_that_takes_too_long_fails_with_what_had_run(tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text(MARKED + "def test_waits(): time.sleep(600)\n")
    found = checks.run_file({"file": str(file), "limit_s": 6.0}, True)
    assert (found["passed"], found["failed"]) == (1, 2)
    assert found["failures"][0].startswith("stopped after 6 s: nothing ended after test_skips")


@pytest.mark.long
def test_a_file_without_a_test_is_an_error(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_unmarked(): pass\n")
    with pytest.raises(RuntimeError, match="collected no test"):
        checks.run_file({"file": str(tmp_path / "test_it.py"), "limit_s": 60.0}, True)


def _call(folder: Path, commit: str, part: str, *rows: dict) -> Results:
    """Keep the rows of a part as one call does; return the results."""
    results = Results(folder, {"device": "Some GPU"}, commit)
    results.begin(part)
    for row in rows:
        results.add(part, row, 1.0)
    return results


def test_a_part_measured_again_replaces_its_rows_and_keeps_the_others(tmp_path):
    _call(tmp_path, "aaa", "floor", {"what": "gap", "us": 1.0})
    _call(tmp_path, "aaa", "latency", {"candidates": 1, "sampling_steps": 1, "where": "cuda", "us": 1.0})
    second = _call(tmp_path, "bbb", "floor", {"what": "gap", "us": 2.0})
    assert second.skip("latency", [{"candidates": 1}], "no time") == [{"candidates": 1, REASON: "no time"}]
    parts = json.loads((tmp_path / "some-gpu.json").read_text())["parts"]
    assert [row["us"] for row in parts["floor"]["rows"]] == [2.0] and parts["floor"]["commit"] == "bbb"
    assert [row["us"] for row in parts["latency"]["rows"]] == [1.0] and parts["latency"]["commit"] == "aaa"
    assert "| gap | 2.00 |" in (tmp_path / "some-gpu.md").read_text()


def test_a_row_that_was_not_reached_keeps_its_former_figures_and_a_failure_does_not(tmp_path):
    _call(tmp_path, "aaa", "floor", *({"what": name, "us": 1.0} for name in ("gap", "launch", "other")))
    late, broken = {"what": "launch", REASON: NO_TIME}, {"what": "other", REASON: "RuntimeError: broken"}
    second = _call(tmp_path, "bbb", "floor", {"what": "gap", "us": 2.0}, late, broken)
    former = {"commit": "aaa", "what": "launch", "us": 1.0}
    assert second.parts["floor"]["rows"] == [{"what": "gap", "us": 2.0}, former, broken]


@pytest.mark.long
def test_what_the_measuring_processes_share_asks_the_driver_and_not_cuda_for_a_gpu():
    code = """
from argparse import Namespace
from pathlib import Path
from bench.gpu.__main__ import _set_environment
_set_environment(Namespace(dry=False, data="", env=""), Path(), 1.0)
import torch
torch.cuda._is_compiled, torch.cuda._device_count_nvml = lambda: True, lambda: 1
def asked():
    raise SystemExit("CUDA was asked, and survives no fork")
torch._C._cuda_getDeviceCount = asked
import bench.training
print(bench.training.DEVICE)
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "cuda"), done.stdout + done.stderr


def test_a_first_import_that_takes_too_long_is_tried_once_more(monkeypatch):
    answers = iter([{REASON: f"{STOPPED} 60 s"}, {"device": "Some GPU"}])
    monkeypatch.setattr("bench.gpu.__main__.measured", lambda *_: answers)
    assert _machine(False) == {"device": "Some GPU"}
    answers = iter([{REASON: f"{STOPPED} 60 s"}, {REASON: NO_TIME}, {"device": "never asked"}])
    assert _machine(False) == {REASON: NO_TIME}


@pytest.mark.parametrize(
    ("row", "fails"),
    [
        ({"file": "a", "passed": 3, "failed": 0}, False),
        ({"file": "a", "passed": 3, "failed": 1}, True),
        ({"file": "a", REASON: "the process ended with SIGSEGV"}, True),
        ({"what": "gap", REASON: "no GPU"}, False),
    ],
    ids=["passed", "failed", "crashed", "no-test"],
)
def test_a_file_of_tests_that_failed_or_did_not_run_fails_the_call(row, fails):
    assert tests_failed([{"file": "b", "passed": 1, "failed": 0}, row]) is fails


@pytest.mark.long
def test_the_dry_run_goes_through_every_part_and_keeps_no_figure(tmp_path):
    kept = sorted((ROOT / "bench").glob("results/*"))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = ["make", "gpu-dry", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "device: cpu (dry run)" in done.stdout
    (path,) = tmp_path.glob("gtp-gpu-dry-*/cpu.json")
    results = json.loads(path.read_text())
    assert {name: len(part["rows"]) for name, part in results["parts"].items()} == {
        part.name: max(1, len(part.rows(True))) for part in plan.PARTS
    }
    rows = [row for part in results["parts"].values() for row in part["rows"]]
    assert [row for row in rows if REASON in row and row.get("backend") != "compiled"] == []
    told = {log.stem.removeprefix("cpu-") for log in path.parent.glob("*.log")}
    assert told <= {"tests", "tests-graph", "sanitizer", "counters"}  # what pytest and the watched steps print
    assert len(text(results).splitlines()) <= LINES
    assert sorted((ROOT / "bench").glob("results/*")) == kept


@pytest.mark.long
@pytest.mark.parametrize(
    ("whole", "faulty", "part", "said"),
    [
        # A name that no one has: the compiler's message, and here the interpreter's, stands in the log whole.
        ("fixed = tl.zeros((BM, H)", "fixed = no_such_name + tl.zeros((BM, H)", "compile", "no_such_name"),
        # A wrong constant compiles and runs: the step is held to the losses of eager, and not timed.
        ("+ gamma * bootstrap", "+ 2.0 * gamma * bootstrap", "steps", "losses differ from eager fp32 by"),
    ],
    ids=["missing-name", "wrong-constant"],
)
def test_a_fault_in_a_kernel_shows_in_the_results_with_its_whole_message(tmp_path, whole, faulty, part, said):
    tree = tmp_path / "tree"
    for name in ("bench", "gtp_fast", "kernels", "configs", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (broken,) = [p for p in tree.glob("kernels/gtp_kernels/*.py") if whole in p.read_text()]
    broken.write_text(broken.read_text().replace(whole, faulty))
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--parts", part]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert said in done.stdout, done.stdout + done.stderr
    (log,) = tmp_path.glob(f"gtp-gpu-dry-*/cpu-{part}.log")
    assert "Traceback (most recent call last)" in log.read_text() and said in log.read_text()
