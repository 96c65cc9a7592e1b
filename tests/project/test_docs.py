"""What the documents say of the code is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pandas as pd
import pytest
from places import ROOT, TESTS
from run_cases import tiny

from gtp_fast.data.catalog import resolve
from gtp_fast.data.check import check
from gtp_fast.data.hdf5 import read_hdf5
from gtp_fast.training.train import train

ALGORITHM = (ROOT / "docs/algorithm.md").read_text()


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", ALGORITHM))))
def test_each_named_function_exists(file, name):
    tree = ast.parse((ROOT / "gtp_fast" / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_equation_of_the_implementation_is_listed():
    named = set(re.findall(r"\(Eq\. (\d+)", "".join(p.read_text() for p in (ROOT / "gtp_fast").glob("**/*.py"))))
    listed = set(re.findall(r"\((\d+)\)", ALGORITHM))
    assert named <= listed


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_and_pictures_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [t for t in targets if "://" not in t and not ((ROOT / page).parent / t).exists()]
    assert missing == []


NAMED_TEST = re.compile(r"`([\w/]*test_\w+\.py)::(test_\w+)`")


def test_every_test_that_a_page_names_is_there():
    named = [(page, *found) for page in ROOT.glob("docs/*.md") for found in NAMED_TEST.findall(page.read_text())]
    assert named
    tests = {file: (ROOT / "tests" / file).read_text() for _, file, _ in named}
    assert [f"{page.name}: {file}::{name}" for page, file, name in named if f"def {name}(" not in tests[file]] == []


@pytest.mark.parametrize("number", range(1, 11))
def test_each_promise_of_a_run_has_a_test_of_its_number_and_a_line_in_the_table(number: int):
    page = (ROOT / "docs" / "reliability.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {number}. "))
    assert f"::test_promise_{number}_" in row


def _elsewhere(file: str, name: str) -> bool:
    """Return whether make test leaves a test out: it, or its module, is marked so."""
    tree = ast.parse((TESTS / file).read_text())
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    marks = {ast.unparse(mark) for mark in test.decorator_list}
    marks |= {ast.unparse(node.value) for node in tree.body if ast.unparse(node).startswith("pytestmark = ")}
    return bool(marks & {f"pytest.mark.{mark}" for mark in ("long", "crash", "gpu")})


def test_each_row_of_what_a_run_promises_has_a_test_in_make_test():
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    named = {row.split(" | ")[0]: NAMED_TEST.findall(row) for row in rows}
    promises = {promise: tests for promise, tests in named.items() if tests}
    assert len(promises) > 25
    assert [promise for promise, tests in promises.items() if all(_elsewhere(*test) for test in tests)] == []


DATA_PAGE = (ROOT / "docs/data.md").read_text()
RECIPES = re.findall(r"```python\n(.*?)```", DATA_PAGE.split("## Your own data")[1].split("\n## ")[0], re.DOTALL)
UNITS_RECIPE = re.findall(r"```python\n(.*?)```", DATA_PAGE.split("## Units of actions")[1], re.DOTALL)[0]


def _given(name: str) -> dict[str, Any]:
    """Return what a recipe of docs/data.md takes for granted."""
    if name == "recorded.hdf5":
        env = gymnasium.make("Hopper-v5")
        env.action_space.seed(0)
        return {"env": env, "act": lambda obs: env.action_space.sample(), "h5py": h5py, "np": np}
    draw = np.random.default_rng(0)
    numbers = {f"obs_{i}": draw.normal(size=400) for i in range(11)}
    numbers |= {f"act_{i}": draw.uniform(-1, 1, 400) for i in range(3)}
    marks = {
        "reward": draw.normal(size=400),
        "done": np.arange(400) % 40 == 17,
        "truncated": np.arange(400) % 100 == 99,
    }
    episode = np.cumsum(np.roll(marks["done"] | marks["truncated"], 1))
    pd.DataFrame(numbers | marks | {"episode": episode, "t": np.arange(400)}).to_csv("table.csv")
    rows = {"observations": draw.normal(size=(400, 11)), "actions": draw.uniform(-1, 1, (400, 3))}
    rows |= {"rewards": marks["reward"], "terminals": marks["done"], "timeouts": marks["truncated"]}
    np.savez("mine.npz", **rows)
    cuts = [slice(start, start + 100) for start in range(0, 400, 100)]
    episodes = [{key: rows[key][cut] for key in ("actions", "rewards")} for cut in cuts]
    for number, one in enumerate(episodes):
        one |= {"observations": draw.normal(size=(101, 11)), "terminated": number == 2}
    return {"episodes": episodes, "h5py": h5py, "np": np}


@pytest.mark.parametrize(
    ("recipe", "name"),
    list(zip(RECIPES, ["mine.hdf5", "converted.hdf5", "joined.hdf5", "table.hdf5", "recorded.hdf5"], strict=True)),
    ids=["numpy", "npz", "episodes", "pandas", "gymnasium"],
)
def test_a_recipe_for_own_data_is_ten_lines_passes_the_check_and_trains(tmp_path: Path, monkeypatch, recipe, name):
    assert sum(bool(line) and "import" not in line for line in recipe.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "docs/data.md", "exec"), _given(name))
    found = check(name, resolve("Hopper-v5"))
    assert (found["ready"], found["warnings"]) == (True, [])
    kept = {"mine.hdf5": 995, "converted.hdf5": 396, "joined.hdf5": 400, "table.hdf5": 396, "recorded.hdf5": 1000}
    assert found["transitions"] == kept[name]
    done = train(tiny(tmp_path, env="Hopper-v5", dataset=name, steps=3))
    assert done.steps == 3 and Path(done.checkpoint).is_dir()


def test_the_recipe_for_units_states_what_is_read(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(f"import h5py, numpy as np\n{RECIPES[0]}{UNITS_RECIPE}", "docs/data.md", "exec"), {})
    read = read_hdf5(Path("mine.hdf5"))
    assert (read.action_units, read.action_bounds) == ("environment", ((-2.0, -2.0, 0.0), (2.0, 2.0, 1.0)))
