"""Runs that earlier versions wrote are read: they act as they did, and go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from places import TESTS
from run_cases import logged_steps
from safetensors.torch import load_file

from gtp_fast import load_policy
from gtp_fast.data.catalog import run_settings
from gtp_fast.presets import read_yaml
from gtp_fast.runs import checkpoint
from gtp_fast.training.train import train

FORMATS = sorted((TESTS / "formats").iterdir())


def test_every_format_up_to_this_versions_is_among_them():
    assert [int(path.name) for path in FORMATS] == list(range(1, checkpoint.FORMAT + 1))


@pytest.mark.parametrize("written", FORMATS, ids=lambda path: f"format {path.name}")
def test_a_policy_of_every_released_format_acts_as_it_did(written: Path):
    expected = {
        name: np.array(values, np.float32)
        for name, values in json.loads((written / "expected.json").read_text()).items()
    }
    policy = load_policy(written / "run", seed=1)
    actions = policy.act(expected["obs"], expected["noise"], expected["gumbel"])
    assert np.allclose(actions, expected["actions"], atol=1e-5)


@pytest.mark.parametrize("written", FORMATS, ids=lambda path: f"format {path.name}")
def test_a_run_of_every_released_format_goes_on(written: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(written, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")  # its settings name files from there
    result = train(run_settings(read_yaml(Path("run/config.yaml"))))
    assert result.steps == 30 and result.steps_per_second > 0
    assert logged_steps(Path("run")) == [10, 20, 30]
    ended, expected = (
        load_file(path)
        for path in (Path("run/ckpt/step-00000030/policy.safetensors"), Path("policy-at-the-end.safetensors"))
    )
    for name, tensor in expected.items():
        assert torch.allclose(ended[name], tensor, rtol=1e-3, atol=1e-5)
