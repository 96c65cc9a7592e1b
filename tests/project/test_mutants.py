"""The tester of mutants: what it changes, and that it tells a test that can fail from one that cannot."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, TESTS
from run_cases import wait_for

from tools import mutants

CHANGES = {
    "x = a < b": ["a <= b"],
    "x = a == b": ["a != b"],
    "x = a + b": ["a - b"],
    "x = a and b": ["a or b"],
    "x = not a": ["a"],
    "x = 3": ["4"],
    "x = True": ["False"],
    "x = 'key'": ["'key_'"],
    "f(x)": ["pass"],
    "x = sorted(a, key=b)": ["list(a)", "sorted(a)"],
    "x = reversed(a)": ["list(a)"],
    "x = min(a, b)": ["max(a, b)"],
    "for x in a: break": ["pass"],
    "def f(): return a": ["return None"],
    "with suppress(E): a": ["suppress()"],
    "try: a\nexcept E: b": ["except E: pass"],
    "x = [a for a in b if a]": ["for a in b if not a"],
}
ALONE = ('"""Prose."""', "x: int", "def f(x: 3) -> 4: 'Prose.'", "raise E(f'{x} is not 3')", "g('two words')")
ALONE += ("__all__ = ['a']", "x = f'{a + b}'", "def f(): return None", "zip(a, strict=True)")


def changes(source: str) -> list[str]:
    return [mutant.after.split("  in: ")[0] for mutant in mutants.mutants("files.py", source)]


@pytest.mark.parametrize("source", CHANGES)
def test_a_place_that_decides_is_changed(source):
    assert changes(source) == CHANGES[source]


def test_a_condition_is_inverted_and_an_assignment_that_others_see_is_left_out():
    assert changes("if a: b.c = d") == ["if not a:", "pass"]


@pytest.mark.parametrize("source", ALONE)
def test_prose_types_and_checks_are_left_alone(source):
    assert [after for after in changes(source) if after != "pass"] == []  # a call may still be left out


def test_each_mutant_is_one_of_its_own_and_can_be_compiled():
    source = (ROOT / "gtp_fast/runs/disk.py").read_text()
    texts = [mutant.text for mutant in mutants.mutants("runs/disk.py", source)]
    assert len(texts) > 20 and len({*texts, ast.unparse(ast.parse(source))}) == len(texts) + 1
    for text in texts:
        compile(text, "disk.py", "exec")


def test_every_module_and_every_test_of_the_table_is_there():
    assert [name for name in mutants.TESTS if not (ROOT / "gtp_fast" / name).is_file()] == []
    for name in {name for names in mutants.TESTS.values() for name in names}:
        file, _, test = name.partition("::")
        assert f"def {test}" in (TESTS / file).read_text(), name


MODULE = '''"""Counting."""

def count(n):
    while n > 0:
        n -= 1
    return n

def unseen(x):
    return x + 1
'''
# The child is in a session of its own: what a mutant leaves behind must end too.
OWN_TEST = """
import os, pathlib, subprocess, sys
from gtp_fast.runs import disk

def test_count():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open(os.environ["CHILDREN"], "a") as file:
        file.write(f"{child.pid}\\n")
    pathlib.Path("left").write_text("here")
    assert disk.count(3) == 0
    child.kill()
    child.wait()
"""
NOTHING = "def test_nothing(): pass\n"


def _checkout(folder: Path, test: str) -> Path:
    for name, text in {"gtp_fast/runs/disk.py": MODULE, "tests/runs/test_disk.py": test}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    (folder / "gtp_fast/__init__.py").touch()
    return folder


def _run(folder: Path, *more: str) -> tuple[int, str]:
    words = [sys.executable, str(ROOT / "tools/mutants.py"), "--root", str(folder), "--module", "runs/disk.py", *more]
    environment = {**os.environ, "CHILDREN": str(folder.parent / "children")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def _alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.long
def test_covered_mutants_are_noticed_hanging_ones_ended_others_reported_and_the_checkout_is_untouched(tmp_path: Path):
    root = _checkout(tmp_path / "checkout", OWN_TEST)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    code, said = _run(root, "--jobs", "2", "--spare", "2")
    assert code == 1 and "| `runs/disk.py` | 10 | 7 | 2 | 3 |" in said, said
    survivors = [line for line in said.splitlines() if line.startswith("survived: ")]
    assert all(line.startswith("survived: gtp_fast/runs/disk.py:9: ") for line in survivors) and len(survivors) == 3
    assert "survived: gtp_fast/runs/disk.py:9: x + 1  ->  x - 1" in survivors
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    children = (tmp_path / "children").read_text().split()
    assert len(children) == 11
    wait_for(lambda: not any(map(_alive, children)), 5.0)


@pytest.mark.long
def test_a_tester_that_is_stopped_leaves_no_process(tmp_path: Path):
    waits = OWN_TEST.replace("    assert", "    child.wait()\n    assert")
    root, children = _checkout(tmp_path / "checkout", waits), tmp_path / "children"
    words = [sys.executable, str(ROOT / "tools/mutants.py"), "--root", str(root), "--module", "runs/disk.py"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "CHILDREN": str(children)}) as tester:
        child = wait_for(lambda: children.exists() and children.read_text().split())[0]
        tester.terminate()
        assert tester.wait(30) == 143
    wait_for(lambda: not _alive(child), 5.0)


@pytest.mark.long
def test_tests_that_fail_without_a_mutant_are_told_and_prove_nothing(tmp_path: Path):
    code, said = _run(_checkout(tmp_path / "checkout", "def test_always(): assert 0\n"), "--count", "1")
    assert code == 1 and "its tests fail without a mutant" in said and "SURVIVED" not in said


def test_the_same_seed_draws_the_same_mutants_and_another_draws_others(tmp_path: Path):
    root = _checkout(tmp_path / "checkout", NOTHING)
    drawn = [_run(root, "--count", "4", "--seed", seed, "--list")[1] for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2].replace("seed 2", "seed 1")
