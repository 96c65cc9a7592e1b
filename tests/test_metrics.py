"""metrics.jsonl holds each step once, whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast import guards, metrics
from gtp_fast.errors import DivergedError


@given(st.lists(st.integers(1, 50), unique=True, max_size=12), st.integers(0, 50), st.binary(max_size=20))
def test_lines_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path_factory, steps, last, torn):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    whole = [json.dumps({"step": step}) for step in sorted(steps)]
    path.write_text("".join(line + "\n" for line in whole) + '{"step": 9' + torn.hex())
    metrics.truncate_after(path, last)
    assert path.read_text().splitlines() == [json.dumps({"step": step}) for step in sorted(steps) if step <= last]


def test_means_are_sums_over_steps():
    assert metrics.means([[10.0, 20.0], [30.0, 40.0]], ("a", "b"), 10) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_the_earliest_bad_value_is_named_with_seed_and_advice(tmp_path: Path):
    bad = [[-1, 40], [30, -1]]
    with pytest.raises(DivergedError, match="actor_loss of seed 8 was not finite at step 30"):
        guards.check_finite(bad, ("actor_loss", "q"), [7, 8], tmp_path, tmp_path / "ckpt")
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert (failure["step"], failure["quantity"], failure["seed"]) == (30, "actor_loss", 8)
    assert failure["last_good_checkpoint"] == str(tmp_path / "ckpt")


def test_a_healthy_run_passes(tmp_path: Path):
    guards.check_finite([[-1, -1]], ("a", "b"), [0], tmp_path, None)
    assert not list(tmp_path.iterdir())
