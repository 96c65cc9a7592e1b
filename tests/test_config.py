"""Settings: precedence, refusals with their nearest match, and files that read back."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast import catalog
from gtp_fast.config import RUN_ONLY_FIELDS, TrainConfig, hash6, validate
from gtp_fast.config_files import dump_yaml, merge, read_yaml
from gtp_fast.errors import UsageError
from gtp_fast.field_help import FIELD_HELP


def test_flags_beat_the_file_the_task_the_preset_and_the_defaults(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("eta: 2.5\ngrad_norm: 3\nlr: 0.01\n")
    cfg = merge({"env": "halfcheetah-medium-v2", "preset": "paper", "lr": 0.02}, file)
    assert (cfg.lr, cfg.eta, cfg.grad_norm) == (0.02, 2.5, 3.0)  # flag, file over task, file over task
    assert (cfg.s1, cfg.steps, cfg.gamma) == (1280, 2_000_000, 0.99)  # preset, task, default


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("paper", ("paper", 80.0, 1280, 5, 1000)), ("stable", ("stable", 10.0, 160, 1, 0))],
)
def test_presets_are_those_of_the_specification(preset, expected):
    cfg = merge({"env": "hopper-medium-v2", "preset": preset})
    assert (cfg.weighting, cfg.sigma_max, cfg.s1, cfg.ema_every, cfg.ema_start) == expected


def test_the_task_table_of_the_paper_is_carried():
    found = {}
    for name in ("halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2", "antmaze-medium-play-v0"):
        cfg = merge({"env": name})
        found[name] = (cfg.eta, cfg.grad_norm, cfg.lr, cfg.max_q_backup, cfg.steps)
    assert found == {
        "halfcheetah-medium-v2": (5.0, 9.0, 3e-4, False, 2_000_000),
        "hopper-medium-v2": (1.0, 9.0, 3e-4, False, 2_000_000),
        "walker2d-medium-v2": (5.0, 1.0, 3e-4, False, 2_000_000),
        "antmaze-medium-play-v0": (5.0, 2.0, 1e-3, True, 1_000_000),
    }


@pytest.mark.parametrize("name", [row["name"] for row in catalog.listing() if row["source"] in ("d4rl", "embedded")])
def test_every_named_data_set_has_settings_that_validate(name):
    assert merge({"env": name}).env == name


def test_behaviour_cloning_sets_eta_to_zero():
    assert merge({"env": "hopper-medium-v2", "bc": True}).eta == 0.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--env is missing"),
        ({"env": "hoper-medium-v2"}, "did you mean hopper-medium-v2"),
        ({"env": "hopper-medium-v2", "batchsize": 3}, "did you mean batch_size?"),
        ({"env": "hopper-medium-v2", "preset": "stabel"}, "did you mean stable?"),
        ({"env": "hopper-medium-v2", "steps": 0}, r"--steps 0 is outside \[1, "),
        ({"env": "hopper-medium-v2", "steps": "many"}, "--steps is 'many', expected int"),
        ({"env": "hopper-medium-v2", "gamma": 1.5}, r"--gamma 1.5 is outside \[0, 1\]"),
        ({"env": "hopper-medium-v2", "sigma_max": 0.001}, "must be above --sigma-min"),
        ({"env": "hopper-medium-v2", "s1": 5}, "must be at least --s0"),
        ({"env": "hopper-medium-v2", "candidates": 50}, "need --select softmax or argmax"),
        ({"env": "hopper-medium-v2", "bc": True, "candidates": 5, "select": "argmax"}, "trains no critic"),
        ({"env": "hopper-medium-v2", "lr": float("nan")}, "--lr nan is outside"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_to_do(settings, words):
    with pytest.raises(UsageError, match=words) as error:
        merge(settings)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n- 2\n", "holds list, expected lines"),
        ("lr: 1\nlr: 2\n", "'lr' stands twice"),
        ("learning_rate: 1\n", "no setting is called 'learning_rate'"),
        ("lr: fast\n", "--lr is 'fast', expected float"),
        ("a: [1\n", "is not a YAML file of settings"),
        ("env: !!python/object/apply:os.system ['true']\n", "is not a YAML file of settings"),
    ],
)
def test_a_file_that_is_no_settings_is_refused_by_name(tmp_path: Path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        merge({"env": "hopper-medium-v2"}, file)
    assert str(file) in str(error.value)


def test_an_absent_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"absent\.yaml does not exist"):
        merge({"env": "hopper-medium-v2"}, tmp_path / "absent.yaml")


@given(
    steps=st.integers(1, 10**9),
    eta=st.floats(0, 100),
    env=st.sampled_from(["hopper-medium-v2", "multigoal-v0", "D4RL/door/human-v2"]),
    dataset=st.none() | st.text(max_size=20),
    bc=st.booleans(),
)
def test_the_dump_of_any_settings_reads_back_equal(tmp_path_factory, steps, eta, env, dataset, bc):
    cfg = TrainConfig(env=env, steps=steps, eta=eta, dataset=dataset, bc=bc)
    file = tmp_path_factory.mktemp("dump") / "config.yaml"
    file.write_text(dump_yaml(cfg), encoding="utf-8")
    assert TrainConfig(**read_yaml(file)) == cfg


def test_the_hash_sees_what_decides_the_result_and_nothing_else():
    cfg = TrainConfig(env="x")
    assert hash6(replace(cfg, run_dir="elsewhere", log_every=7, threads=3)) == hash6(cfg)
    assert hash6(replace(cfg, eta=2.0)) != hash6(cfg)
    assert set(RUN_ONLY_FIELDS) < {field.name for field in fields(TrainConfig)}


def test_every_setting_has_a_line_of_help():
    assert list(FIELD_HELP) == [field.name for field in fields(TrainConfig)]


def test_the_list_of_flags_is_frozen():
    # A new flag needs a reason: say in the commit why the existing ones cannot serve, then raise this number.
    assert len(asdict(TrainConfig())) == 52


def test_defaults_are_those_of_the_default_preset():
    default = merge({"env": "HalfCheetah-v5"})
    assert default.preset == TrainConfig.preset
    assert validate(default) == default
