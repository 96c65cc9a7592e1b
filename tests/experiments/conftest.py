"""A trained run that the tests of reports and latency read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_cases import tiny

from gtp_fast.training.train import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run of 30 steps and two seeds, evaluated every 15 steps; no test changes it."""
    return Path(train(tiny(tmp_path_factory.mktemp("trained"), eval_every=15)).run_dir)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
