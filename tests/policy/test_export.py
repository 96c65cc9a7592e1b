"""An exported policy acts as the run's policy does, alone, or is not written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from families import family
from places import ROOT
from run_cases import tiny

from gtp_fast.cli.main import main
from gtp_fast.errors import CheckpointError, GtpError, UsageError
from gtp_fast.policy import export
from gtp_fast.policy.policy import load_policy
from gtp_fast.training.train import train

CASES = {
    "gtp": {"eta": 1.0},
    "dql": {"algo": "dql", "candidates": 4, "select": "argmax"},
    "td3bc": {"algo": "td3bc", "sampling_steps": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A tiny run of each algorithm that acts in another way: K steps, noise within them, no noise."""
    return {
        name: Path(train(tiny(tmp_path_factory.mktemp(name), steps=4, **changes)).run_dir)
        for name, changes in CASES.items()
    }


OTHER_STEPS = {"gtp": 3}  # than the run's own; of the others K is fixed


@pytest.fixture(scope="module")
def exported(runs) -> Callable[[str], dict[str, Any]]:
    """Return a function that exports a run's second member, the first time it is asked for."""

    @cache
    def export_it(name: str) -> dict[str, Any]:
        return export.export_run(runs[name], export.ExportConfig(seed=1, sampling_steps=OTHER_STEPS.get(name)))

    return export_it


@pytest.mark.slow
@pytest.mark.parametrize("name", family(CASES, quick=["gtp"]))
def test_an_onnx_file_acts_as_the_policy_for_any_number_of_observations(runs, exported, name):
    found = exported(name)
    policy = load_policy(runs[name], seed=1, device="cpu", sampling_steps=OTHER_STEPS.get(name))
    session = onnxruntime.InferenceSession(found["path"], providers=["CPUExecutionProvider"])
    assert found["largest_difference"] <= export.TOLERANCE and found["opset"] == 18
    for count in (1, 7):
        inputs = export.drawn(policy, count, seed=99)
        (action,) = session.run(None, inputs)
        expected = policy.act(**inputs)
        assert action.shape == (count, 6)
        np.testing.assert_allclose(action, expected, atol=1e-5)


@pytest.mark.long
def test_softmax_takes_its_numbers_as_an_input_and_torch_export_agrees(runs, tmp_path, capsys):
    out = tmp_path / "p.pt2"
    asked = ["export", str(runs["gtp"]), "--format", "pt2", "--candidates", "3", "--sampling-steps", "4"]
    main([*asked, "--out", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(out) and list(found["inputs"]) == ["obs", "noise", "gumbel"]
    policy = load_policy(runs["gtp"], seed=0, device="cpu", sampling_steps=4, candidates=3)
    run, inputs = export.reader("pt2", out.read_bytes()), export.drawn(policy, 50, seed=3)
    expected = policy.act(**inputs)
    np.testing.assert_allclose(run(inputs), expected, atol=1e-5)
    other = inputs | {"gumbel": np.random.default_rng(7).gumbel(size=150).astype(np.float32)}
    assert not np.array_equal(run(other), expected)


@pytest.mark.slow
def test_the_example_of_the_document_acts_with_onnxruntime_alone(exported):
    folder = Path(exported("gtp")["path"]).parent
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 24
    check = "import sys; print(action.shape, abs(action).max() <= 1, 'torch' in sys.modules, 'gtp_fast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["(1,", "6)", "True", "False", "False"], done.stderr


@pytest.mark.slow
def test_the_file_says_what_it_is(exported):
    model = onnx.load(exported("gtp")["path"])
    onnx.checker.check_model(model)
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key.startswith("gtp_fast")}
    assert about["gtp_fast.policy"]["sampling_steps"] == 3 and about["gtp_fast.policy"]["seeds"] == [1]
    assert about["gtp_fast.inputs"] == {"obs": [17], "noise": [6]}
    assert [value.name for value in model.graph.output] == ["action"] and model.opset_import[0].version == 18


def test_a_file_that_acts_otherwise_is_refused(runs):
    policies = [load_policy(runs["gtp"], seed=seed, device="cpu") for seed in (0, 1)]
    with pytest.raises(GtpError, match=r"differs from policy\.act"):
        export.parity(policies[0], lambda inputs: policies[1].act(**inputs))
    assert export.parity(policies[0], lambda inputs: policies[0].act(**inputs)) == 0.0


def test_a_file_that_acts_otherwise_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(GtpError, match="nothing was written"):
        export.export_run(runs["td3bc"], export.ExportConfig(format="pt2", out=tmp_path / "p.pt2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"format": "tflite"}, UsageError, "none of onnx, pt2"),
        ({"seed": 7}, UsageError, "not 7"),
        ({"out": Path("policy.pt2")}, UsageError, "ends in .onnx"),
        ({"out": Path("no/such/policy.onnx")}, UsageError, "a folder that exists"),
        ({"candidates": 2, "select": "none"}, UsageError, "softmax or argmax"),
        ({"best": True}, CheckpointError, "best"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_by_name(runs, changes, error, words):
    with pytest.raises(error, match=words):
        export.export_run(runs["gtp"], export.ExportConfig(**changes))


def test_a_missing_package_is_named_with_its_remedy(runs, monkeypatch):
    monkeypatch.setitem(export.FORMATS, "onnx", (".onnx", ("no_such_package",)))
    with pytest.raises(UsageError, match=r"needs no_such_package; pip install 'gtp-fast\[export\]'"):
        export.export_run(runs["gtp"], export.ExportConfig())


def test_a_file_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "policy.pt2").mkdir()
    with pytest.raises(UsageError, match=r"policy\.pt2 cannot be written .*; name another file with --out"):
        export.export_run(runs["td3bc"], export.ExportConfig(format="pt2", out=tmp_path / "policy.pt2"))
