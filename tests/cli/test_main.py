"""The commands as people type them, in processes of their own but for some that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_cases import columns, write
from run_cases import gtp_fast

from gtp_fast.cli.main import main
from gtp_fast.data import catalog


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--evn", "x"], "unknown argument --evn; did you mean --env?"),
        (["train", "--env", "hoper-demo-v0"], "did you mean hopper-demo-v0"),
        (["train", "--env", "hopper-demo-v0", "--preset", "stabel"], "did you mean stable?"),
        (["train", "--env", "hopper-demo-v0", "--steps", "few"], "invalid int value: 'few'"),
        (["train"], "--env is missing"),
        (["report", "no-such-run"], "no-such-run is no run directory"),
        (["data", "info"], "needs a name"),
    ],
)
def test_a_wrong_word_fails_with_the_nearest_match_and_code_2(typed, words):
    done = gtp_fast(*typed)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and words in done.stderr and "Traceback" not in done.stderr


def test_print_config_shows_what_would_run_and_reads_back(tmp_path: Path):
    shown = gtp_fast("train", "--env", "hopper-medium-v2", "--eta", "3", "--no-graph", "--print-config").stdout
    assert "eta: 3.0" in shown and "graph: false" in shown
    (tmp_path / "again.yaml").write_text(shown)
    again = gtp_fast("train", "--config", str(tmp_path / "again.yaml"), "--print-config").stdout
    assert again == shown


def test_print_config_as_json_is_one_object():
    shown = json.loads(gtp_fast("train", "--env", "hopper-medium-v2", "--eta", "3", "--print-config", "--json").stdout)
    assert (shown["env"], shown["eta"], shown["grad_norm"]) == ("hopper-medium-v2", 3.0, 9.0)


def test_json_of_train_is_one_object_with_the_promised_fields(tmp_path: Path, capsys):
    data = write(tmp_path / "data.hdf5", columns())
    typed = ["--env", "HalfCheetah-v5", "--dataset", str(data), "--run-dir", str(tmp_path / "run"), "--threads", "1"]
    small = ["--steps", "6", "--hidden", "16", "--batch-size", "8", "--seeds", "2", "--eval-episodes", "1"]
    small += ["--eval-max-steps", "50"]
    main(["train", *typed, *small, "--json"])
    result = json.loads(capsys.readouterr().out)
    promised = "run_dir env dataset algo seeds steps steps_per_second seconds device backend graph precision score_last"
    assert set(promised.split()) | {"score_best", "return_last", "checkpoint"} <= set(result)
    assert len(result["score_last"]) == len(result["score_best"]) == len(result["seeds"]) == 2
    assert Path(result["checkpoint"]).is_dir() and (tmp_path / "run/report/curve.png").stat().st_size > 10_000
    main(["eval", str(tmp_path / "run"), "--episodes", "1", "--candidates", "3", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert (values["candidates"], values["select"], len(values["returns"])) == (3, "softmax", 2)


def test_bad_data_ends_with_code_3_before_any_run_directory_is_made(tmp_path: Path, capsys):
    file = tmp_path / "data.hdf5"
    typed = ["train", "--env", "Hopper-v5", "--dataset", str(file), "--run-dir", str(tmp_path / "run")]
    absent = _refused(typed, capsys)
    file.write_text("this is not HDF5")
    for code, error in (absent, _refused(typed, capsys)):
        assert code == 3 and str(file) in error
    assert not (tmp_path / "run").exists()


def test_eval_of_what_is_no_run_says_so(tmp_path: Path, capsys):
    code, error = _refused(["eval", str(tmp_path)], capsys)
    assert code == 2 and "is no run directory" in error


def _refused(typed: list[str], capsys) -> tuple[object, str]:
    """Type a command into this process, which has torch already; return its exit code and what it says."""
    with pytest.raises(SystemExit) as ended:
        main(typed)
    return ended.value.code, capsys.readouterr().err


def test_data_info_is_lines_for_a_person_and_an_object_for_a_program(capsys):
    main(["data", "info", "multigoal-v0"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["name"], lines["transitions"], lines["return_mean"]) == ("multigoal-v0", "16,133", "1.0")
    main(["data", "info", "multigoal-v0", "--json"])
    assert json.loads(capsys.readouterr().out)["transitions"] == 16_133


def test_data_info_holds_a_file_to_the_environment_that_is_named(tmp_path: Path, capsys):
    path = write(tmp_path / "a.hdf5", columns())
    assert _refused(["data", "info", str(path), "--env", "Hopper-v5"], capsys) == (
        3,
        f"error: {path}: observations have 17 numbers, but Hopper-v5 has 11; name the environment that the data came "
        "from with --env\n",
    )


def test_data_list_stands_below_a_head_in_its_columns(capsys):
    main(["data", "list"])
    head, *lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("hopper-medium-v2 "))
    for name, value in (("source", "d4rl"), ("obs/act", "11/3"), ("environment", "Hopper-v4"), ("what", "return -20")):
        assert row[head.index(name) :].startswith(value)


def test_data_list_as_json_is_the_catalogue(capsys):
    main(["data", "list", "--json"])
    assert json.loads(capsys.readouterr().out) == {"datasets": catalog.listing()}


def test_doctor_says_which_backend_is_used_and_why_not_the_others():
    found = json.loads(gtp_fast("doctor", "--json").stdout)
    assert {"torch", "gpu", "eager", "compiled", "fused", "long runs use"} <= set(found)
