"""Reports: figures by hand, the paper's numbers only where the data are the paper's, pictures that open."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from data_cases import columns, write
from PIL import Image
from run_cases import multigoal, tiny

from gtp_fast.cli.main import _draw
from gtp_fast.data import embedded
from gtp_fast.data.catalog import PUBLISHED, run_settings
from gtp_fast.errors import UsageError
from gtp_fast.experiments import figures, paper, report
from gtp_fast.training.train import train


def _run(env: str, sha256: str | None, source: str | None = "/data/hopper_medium-v2.hdf5", **changes) -> report.Run:
    environment = {"data_sha256": sha256, "data_source": source}
    settings = vars(run_settings({"env": env})) | changes
    return report.Run(Path("run"), settings, environment, *([np.zeros(0)] * 3), False, {})


D4RL = PUBLISHED["hopper-medium-v2"][1]


def _change(file: Path, **changes: Any) -> None:
    """Change values in a file of a run; JSON is YAML."""
    file.write_text(json.dumps(yaml.safe_load(file.read_text()) | changes))


def _other(run: Path, folder: Path, **settings: Any) -> Path:
    """Return a copy of a run as if it had other settings."""
    shutil.copytree(run, folder)
    _change(folder / "config.yaml", **settings)
    return folder


@pytest.mark.parametrize(("env", "lines"), [("Hopper-v5", 1), ("cube-single", 0)])
def test_the_datas_return_is_drawn_beside_scores_of_returns_alone(env, lines):
    axes, run = plt.figure().subplots(), _run(env, None)
    figures._data_line(axes, replace(run, environment=run.environment | {"data_return_mean": -63.2}))
    assert len(axes.lines) == lines


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert report.interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5
    # Five values: a quarter of five is 1.25, so the second and the fourth count three quarters.
    assert report.interquartile_mean(np.arange(5.0)) == pytest.approx((0.75 * 1 + 2 + 0.75 * 3) / 2.5)
    assert report.interquartile_mean(np.array([7.0])) == 7.0


def test_the_bootstrap_interval_holds_the_mean_and_needs_two_seeds():
    figures = np.random.default_rng(0).normal(50, 5, 10)
    low, high = report.stratified_interval([figures]) or (0.0, 0.0)
    assert low < report.interquartile_mean(figures) < high and high - low < 12
    assert report.stratified_interval([np.array([1.0])]) is None


def test_the_papers_numbers_are_those_printed():
    assert paper.score("halfcheetah-m", bc=False) == (53.9, 0.1)
    assert paper.score("halfcheetah-m", bc=False, sampling_steps=2) == (53.1, 0.5)
    assert paper.score("hopper-m", bc=True) == (83.7, 4.0)
    assert paper.score("halfcheetah-m", "dql") == (51.1, None) and paper.score("halfcheetah-m", "fql") is None
    assert paper.score("halfcheetah-mr", "iql") == (44.2, None)  # Table 2
    assert paper.score("halfcheetah-mr", "iql", bc=True) == (36.6, None)  # Table 1
    assert paper.score("halfcheetah-mr", "td3bc") == (44.6, None)  # Table 1
    assert paper.score("halfcheetah-mr", "td3bc", bc=True) is None
    assert paper.score(None, bc=False) is None and paper.score("nowhere", bc=False) is None


def test_a_report_of_a_run_tells_last_and_best_apart_and_its_setting(trained: Path, tmp_path: Path):
    out = report.draw_report([trained], tmp_path / "report")
    row = json.loads((out / "summary.json").read_text())["settings"][0]
    assert len(row["last"]["each"]) == len(row["best"]["each"]) == 2 and row["kind"] == "score"
    assert all(b >= x for b, x in zip(row["best"]["each"], row["last"]["each"], strict=True))
    assert row["paper"] == {"absent": "the data are not the paper's"}
    page = (out / "README.md").read_text()
    assert "GTP stable, K = 2" in page and "SHA-256" in page and "![curve](curve.png)" in page
    assert Image.open(out / "curve.png").size[0] > 1000


def test_seeds_of_one_setting_are_one_line_and_settings_are_several(trained: Path, tmp_path: Path):
    runs = [_other(trained, tmp_path / "seeds", seed=5), _other(trained, tmp_path / "cloned", bc=True)]
    out = report.draw_report([trained, *runs], tmp_path / "report")
    rows = json.loads((out / "summary.json").read_text())["settings"]
    assert [(row["setting"], row["seeds"]) for row in rows] == [
        ("GTP stable, K = 2", [0, 1, 5, 6]),
        ("GTP-BC stable, K = 2", [0, 1]),
    ]


def test_runs_that_differ_in_more_than_seeds_are_lines_of_their_own_and_say_in_what():
    runs = [_run("hopper-medium-v2", D4RL, seed=seed, eta=eta) for seed, eta in ((0, 1.0), (1, 1.0), (2, 5.0))]
    found = {name: [run.settings["seed"] for run in members] for (_, name), members in report.group(runs).items()}
    assert found == {"GTP stable, K = 5, eta = 1.0": [0, 1], "GTP stable, K = 5, eta = 5.0": [2]}


def test_members_of_a_sweep_are_lines_of_their_own_and_not_seeds(trained: Path, tmp_path: Path):
    members = report.members_apart(report.read_run(_other(trained, tmp_path / "sweep", etas="0.5,8")))
    assert [(m.settings["seed"], m.settings["eta"], m.figures.shape[1]) for m in members] == [(0, 0.5, 1), (1, 8.0, 1)]
    names = [name for _, name in report.group(members)]
    assert names == ["GTP stable, K = 2, eta = 0.5", "GTP stable, K = 2, eta = 8.0"]


def test_runs_on_other_data_are_lines_of_their_own():
    runs = [_run("hopper-medium-v2", "ab" * 32), _run("hopper-medium-v2", "cd" * 32, seed=1)]
    assert [name for _, name in report.group(runs)] == [f"GTP stable, K = 5, data = {x * 4}" for x in ("ab", "cd")]


def test_the_machine_and_the_cadence_of_a_run_do_not_part_its_seeds():
    changes = ({"device": "cpu", "log_every": 7}, {"device": "cuda", "backend": "compiled", "seed": 1})
    runs = [_run("hopper-medium-v2", D4RL, **change) for change in changes]
    assert [name for _, name in report.group(runs)] == ["GTP stable, K = 5"]


def test_an_unfinished_run_with_a_torn_line_is_drawn(run: Path, tmp_path: Path):
    shutil.rmtree(run / "eval")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "actor_')
    out = report.draw_report([run], tmp_path / "report")
    assert "not evaluated yet" in (out / "README.md").read_text()


@pytest.mark.parametrize("dataset", [None, "/elsewhere/copy.hdf5"])
def test_the_papers_number_stands_beside_its_own_data(dataset):
    assert report._paper_score([_run("hopper-medium-v2", D4RL, dataset=dataset)]) == {"mean": 90.3, "std": 2.7}


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            _run("hopper-medium-v2", "ab" * 32),
            "trained on hopper_medium-v2.hdf5 (SHA-256 abababab), not D4RL's hopper-",
        ),
        (_run("hopper-medium-v2", "ab" * 32, "a|b.hdf5"), "trained on a|b.hdf5 (SHA-256 abababab), not D4RL's"),
        (
            _run("hopper-medium-v2", None, None, dataset="my/mirror.hdf5"),
            "trained on mirror.hdf5, not D4RL's hopper-medium",
        ),
        (_run("hopper-medium-v2", None, None), "trained on unrecorded data, not D4RL's"),
        (_run("antmaze-medium-play-v2", "ab" * 32), "no checksum of the published antmaze-medium-play-v2 is known"),
        (_run("Hopper-v5", D4RL), "the data are not the paper's"),
    ],
    ids=["mirror", "bar", "dataset", "no record", "no checksum", "no row"],
)
def test_the_papers_number_does_not_stand_beside_other_data(run, words):
    assert report._paper_score([run])["absent"].startswith(words)


def test_one_run_on_other_data_keeps_the_papers_number_from_its_seeds():
    runs = [_run("hopper-medium-v2", D4RL), _run("hopper-medium-v2", "cd" * 32)]
    assert "SHA-256 cdcdcdcd" in report._paper_score(runs)["absent"]


def test_a_run_on_a_mirror_says_so_in_the_table(trained: Path, tmp_path: Path):
    write(tmp_path / "mirror.hdf5", columns(sizes=(11, 3)))
    train(tiny(tmp_path, env="hopper-medium-v2", dataset=str(tmp_path / "mirror.hdf5")))
    shutil.copytree(trained / "eval", tmp_path / "run/eval", dirs_exist_ok=True)
    page = (report.draw_report([tmp_path / "run"], tmp_path / "report") / "README.md").read_text()
    assert "| trained on mirror.hdf5 (SHA-256 " in page and "90.3" not in page


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "\x00"])
def test_a_damaged_evaluation_is_named(tmp_path: Path, text):
    (tmp_path / "eval").mkdir()
    (tmp_path / "config.yaml").write_text("env: Hopper-v5\n")
    (tmp_path / "eval/step-00000010.json").write_text(text)
    with pytest.raises(UsageError, match=r"step-00000010\.json .*remove it to leave it out"):
        report.draw_report([tmp_path], tmp_path / "report")


def test_a_report_that_cannot_be_written_names_its_folder(trained: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/report cannot be written .*; name another folder with --out"):
        report.draw_report([trained], tmp_path / "file/report")


def test_a_report_that_is_not_drawn_takes_no_result_away(trained: Path, tmp_path: Path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/report", ignore_errors=True)
    (tmp_path / "run/report").touch()
    _draw(tmp_path / "run/report")
    said = capsys.readouterr().err
    assert said.startswith("warning: the report is not drawn: ") and "`gtp-fast report" in said


def test_a_folder_that_is_no_run_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="is no run directory"):
        report.draw_report([tmp_path], tmp_path / "report")


def test_mode_masses_count_what_lies_in_each_mode():
    centres, radius = embedded.MODE_CENTRES, embedded.MODE_RADIUS
    actions = np.concatenate([np.repeat(centres, [1, 2, 3, 2], axis=0), [[0.0, 0.0], centres[0] + radius * 1.01]])
    masses, off = embedded.mode_masses(actions)
    assert masses.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.2]) and off == pytest.approx(0.2)


@pytest.mark.slow
def test_a_run_on_the_four_goals_is_reported_before_its_first_checkpoint(tmp_path: Path):
    run = Path(train(run_settings(multigoal(tmp_path / "run"))).run_dir)
    shutil.rmtree(run / "ckpt")
    (run / "ckpt").mkdir()
    page = (report.draw_report([run], tmp_path / "out") / "README.md").read_text()
    assert "Samples at the four goals are not drawn: " in page and "has no checkpoint yet" in page
    assert (tmp_path / "out/curve.png").exists() and not (tmp_path / "out/multigoal.png").exists()


def test_a_run_on_the_four_goals_draws_their_picture(tmp_path: Path):
    train(run_settings(multigoal(tmp_path / "run")))
    out = report.draw_report([tmp_path / "run"], tmp_path / "report")
    goals = json.loads((out / "summary.json").read_text())["multigoal"]
    assert set(goals) == {"data", "K = 5", "K = 2"}
    assert goals["data"]["off"] < 0.03 and all(0.2 < mass < 0.3 for mass in goals["data"]["masses"])
    assert Image.open(out / "multigoal.png").size[0] > 1000


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("eval/step-00000030.json", {"step": [3]}, " is not an evaluation (TypeError(\"'list' object"),
        (
            "eval/step-00000030.json",
            {"returns": [[1.0]]},
            " is not an evaluation (ValueError('returns have shape (1, 1), expected",
        ),
        (
            "eval/step-00000030.json",
            {"scores": [[1.0], ["x"]]},
            " is not an evaluation (ValueError(\"could not convert string to float: 'x'\")",
        ),
        (
            "eval/step-00000030.json",
            {"returns": [[1.0], [float("inf")]]},
            " is not an evaluation (ValueError('returns are [[1.0], [inf]], expected finite",
        ),
        ("environment.json", {"data_return_mean": "x"}, ": data_return_mean is 'x', which no run"),
        ("environment.json", {"references": [1]}, ": references is [1], which no run"),
        ("config.yaml", {"seeds": 0}, ": --seeds 0 is outside [1, 4096]; restore the file"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_what_it_holds(run: Path, file: str, damage: dict, said: str):
    _change(run / file, **damage)
    with pytest.raises(UsageError) as error:
        report.draw_report([run], run / "report")
    assert str(error.value).startswith(f"{run / file}{said}")


@pytest.mark.parametrize("line", [b"\xa8", b"[1]", b'{"step": 9, "other": [1.0]}', b'{"step": 9, "actor_loss": []}'])
def test_a_damaged_line_of_metrics_is_named_unless_it_is_the_last(run: Path, line: bytes):
    file = run / "metrics.jsonl"
    whole, steps = file.read_bytes(), len(report.read_run(run).losses["step"])
    file.write_bytes(whole + line)
    assert len(report.read_run(run).losses["step"]) == steps
    file.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(UsageError, match=rf"metrics.jsonl:{steps + 1} is no line of metrics; restore the file"):
        report.read_run(run)
