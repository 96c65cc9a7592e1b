"""metrics.jsonl holds each step once, whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast import metrics


@given(st.lists(st.integers(1, 50), unique=True, max_size=12), st.integers(0, 50), st.binary(max_size=20))
def test_lines_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path_factory, steps, last, torn):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    whole = [json.dumps({"step": step}) for step in sorted(steps)]
    path.write_text("".join(line + "\n" for line in whole) + '{"step": 9' + torn.hex())
    metrics.truncate_after(path, last)
    assert path.read_text().splitlines() == [json.dumps({"step": step}) for step in sorted(steps) if step <= last]


def test_means_are_sums_over_steps():
    assert metrics.means([[10.0, 20.0], [30.0, 40.0]], ("a", "b"), 10) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


@pytest.mark.parametrize("line", ["123", '{"loss": 1}', "\x00\x00"], ids=["number", "no step", "zeros"])
def test_what_is_no_metric_line_ends_the_file(tmp_path: Path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    metrics.truncate_after(path, 5)
    assert path.read_text() == '{"step": 1}\n'
