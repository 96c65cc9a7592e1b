"""What the documents say of the code is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import h5py
import pytest

from gtp_fast import dataset
from gtp_fast.catalog import resolve

ROOT = Path(__file__).parent.parent
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


def test_the_example_of_own_data_trains(tmp_path: Path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    compiled = compile(code, "docs/data.md", "exec")
    names: dict = {}
    exec(compiled, names)
    data = dataset.load(resolve("Hopper-v5"), tmp_path / "mine.hdf5")
    assert data.episodes == 5 and len(data.reward_N) == 1000 - 5 and h5py.is_hdf5(tmp_path / "mine.hdf5")


NAMED_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def test_every_test_that_a_page_names_is_there():
    named = [(page, *found) for page in ROOT.glob("docs/*.md") for found in NAMED_TEST.findall(page.read_text())]
    assert named
    missing = [f"{page.name}: {file}::{name}" for page, file, name in named if f"def {name}(" not in _test_file(file)]
    assert missing == []


@pytest.mark.parametrize("number", range(1, 10))
def test_each_promise_of_a_run_has_a_test_of_its_number_and_a_line_in_the_table(number: int):
    page = (ROOT / "docs" / "reliability.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {number}. "))
    assert f"::test_promise_{number}_" in row


def _test_file(name: str) -> str:
    path = ROOT / "tests" / name
    return path.read_text() if path.exists() else ""
