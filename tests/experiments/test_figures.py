"""Pictures: no title, label, legend or number is cut off at an edge or lies over another one."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from gtp_fast.experiments import figures

SAMPLERS = (
    "data",
    *("GTP-BC, K = 5", "GTP-BC, K = 2", "GTP-BC, preset paper, K = 5", "GTP-BC, preset paper, K = 2"),
    *("CAC (C-BC), K = 2", "CAC (C-BC), K = 5", "DQL (D-BC), T = 5"),
)


def _faults(figure: Figure) -> list[str]:
    """Return the texts that are cut off at an edge of the figure, and the pairs that lie over each other."""
    with mock.patch.object(Text, "draw", autospec=True, side_effect=Text.draw) as draw:
        figure.canvas.draw()
    texts = dict.fromkeys(call.args[0] for call in draw.call_args_list)  # a tick beyond its axis is not drawn
    shown = [text for text in texts if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    whole = figure.bbox.padded(1.0)
    cut = [f"cut off: {text!r}" for text, box in boxes if not _within(whole, box)]
    over = [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]
    return cut + [f"{a!r} lies over {b!r}" for a, b in over]


def _within(whole: Bbox, box: Bbox) -> bool:
    return whole.x0 <= box.x0 and whole.y0 <= box.y0 and box.x1 <= whole.x1 and box.y1 <= whole.y1


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Return the list that takes each figure that would become PNG bytes."""
    taken: list[Figure] = []
    monkeypatch.setattr(figures, "png", lambda figure: taken.append(figure) or b"")
    yield taken
    for figure in taken:
        plt.close(figure)


def _goals(names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    row = {"masses": [0.25, 0.25, 0.25, 0.25], "off": 0.123, "network_evaluations": 10}
    return {name: np.zeros((4, 2)) for name in names}, dict.fromkeys(names, row)


@pytest.mark.parametrize("count", [2, 8], ids=["two", "eight"])
def test_the_four_goals_of_every_sampler_have_their_whole_titles(drawn, count):
    figures.goals(*_goals(SAMPLERS[:count]))
    assert _faults(drawn[0]) == []


@pytest.mark.parametrize("free", [True, False], ids=["K-free", "K-fixed"])
def test_the_four_goals_of_a_run_have_their_whole_titles(drawn, monkeypatch, free):
    def policy(*_: Any, sampling_steps: int = 5, **__: Any) -> SimpleNamespace:
        rng = np.random.default_rng(0)
        return SimpleNamespace(
            config=SimpleNamespace(sampling_steps=sampling_steps, algo="gtp", bc=True),
            steps_are_free=free,
            members=1,
            act_members=lambda obs: rng.uniform(-1, 1, obs.shape).astype(np.float32),
            paths=lambda obs: rng.normal(0, 9, (sampling_steps + 1, *obs.shape)),
        )

    monkeypatch.setattr(figures, "load_policy", policy)
    figures.multigoal(Path("run"))
    assert _faults(drawn[0]) == []


@pytest.mark.parametrize("data", [1, 2, 5])
def test_a_table_has_whole_texts_for_any_number_of_data_sets(drawn, data):
    paper = {"mean": 50.0}
    done = {"method": "GTP, trained and acting in K = 2, argmax of 50", "paper": paper, "last": {"each": [48.0, 53.5]}}
    bad = {"method": "GTP", "paper": {}, "status": "diverged at step 1,000"}
    rows = [row | {"data": f"halfcheetah-medium-replay-v{i}"} for i in range(data) for row in (done, bad)]
    figures.table(rows, "Table 7: sampling steps")
    assert _faults(drawn[0]) == []


def test_the_sweeps_have_a_tick_at_each_value_and_whole_texts(drawn):
    values = {"K": (1, 2, 3, 4, 5, 7, 10), "own K": (2, 5), "eta": (0.0, 1.0, 5.0, 10.0)}
    rows = [{"panel": panel, "x": x, "last": {"each": [1.0, 2.0]}} for panel, xs in values.items() for x in xs]
    figures.sweeps(rows)
    assert _faults(drawn[0]) == []
    assert [text.get_text() for text in drawn[0].axes[1].get_xticklabels()] == ["0", "1", "5", "10"]


@pytest.mark.parametrize("places", [[(1, 1)], [(1, 1), (1, 50), (256, 50)]], ids=["one", "three"])
def test_latency_has_whole_texts(drawn, places):
    rows = [
        {"batch": batch, "candidates": candidates, "backend": "compiled", "sampling_steps": k}
        | dict.fromkeys(("p20_us", "median_us", "p80_us"), 100.0 * k)
        for batch, candidates in places
        for k in (1, 2, 5, 10)
    ]
    figures.latency_lines({"rows": rows, "fits": [], "algo": "gtp", "device": "cpu", "processor": "AMD EPYC 9B45"})
    assert _faults(drawn[0]) == []


def test_texts_over_each_other_and_cut_off_are_found(drawn):
    figure, panels = plt.subplots(1, 2, figsize=(4, 2))
    for axes in panels:
        axes.set_title("a title that is much too long for its panel", loc="left")
    drawn.append(figure)
    assert {fault.split(" ")[0] for fault in _faults(figure)} == {"cut", "'a"}
