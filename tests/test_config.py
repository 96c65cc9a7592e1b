"""Settings: precedence, refusals with their nearest match, and files that read back."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from gtp_fast import config
from gtp_fast.config import RUN_ONLY_FIELDS, TrainConfig, hash6, member_values, validate
from gtp_fast.data import catalog
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import UsageError
from gtp_fast.presets import dump_yaml, read_yaml

CONFIGS = ROOT / "configs"
HOPPER = {"env": "hopper-medium-v2"}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The place of a file of one's own."""
    return tmp_path / "mine.yaml"


def test_flags_beat_the_file_the_task_the_preset_and_the_defaults(mine):
    mine.write_text("eta: 2.5\ngrad_norm: 3\nlr: 0.01\n")
    cfg = run_settings({"env": "halfcheetah-medium-v2", "preset": "paper", "lr": 0.02}, mine)
    assert (cfg.lr, cfg.eta, cfg.grad_norm) == (0.02, 2.5, 3.0)  # flag, file over task, file over task
    assert (cfg.s1, cfg.steps, cfg.gamma) == (1280, 2_000_000, 0.99)  # preset, task, default


@pytest.mark.parametrize(
    ("preset", "expected"), [("paper", ("paper", 80.0, 1280, 5, 1000)), ("stable", ("stable", 10.0, 160, 5, 0))]
)
def test_presets_are_those_of_the_specification(preset, expected):
    cfg = run_settings(HOPPER | {"preset": preset})
    assert (cfg.weighting, cfg.sigma_max, cfg.s1, cfg.ema_every, cfg.ema_start) == expected


def test_the_task_table_of_the_paper_is_carried():
    found = {}
    for name in ("halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2", "antmaze-medium-play-v0"):
        cfg = run_settings({"env": name})
        found[name] = (cfg.eta, cfg.grad_norm, cfg.lr, cfg.max_q_backup, cfg.steps)
    assert found == {
        "halfcheetah-medium-v2": (5.0, 9.0, 3e-4, False, 2_000_000),
        "hopper-medium-v2": (1.0, 9.0, 3e-4, False, 2_000_000),
        "walker2d-medium-v2": (5.0, 1.0, 3e-4, False, 2_000_000),
        "antmaze-medium-play-v0": (5.0, 2.0, 1e-3, True, 1_000_000),
    }


@pytest.mark.parametrize("name", [row["name"] for row in catalog.listing() if row["source"] in ("d4rl", "embedded")])
def test_every_named_data_set_has_settings_that_validate(name):
    assert run_settings({"env": name}).env == name


# (eta, T, gradient norm, learning rate, max-Q backup) of each task, as published: offline.py of Consistency-AC, main.py
# of Diffusion-QL (the commits stand in configs/algorithms).
PUBLISHED = {
    "halfcheetah-medium-v2": [(1.0, 2, 9.0, 3e-4, False), (1.0, 5, 9.0, 3e-4, False)],
    "hopper-medium-v2": [(0.1, 2, 9.0, 3e-4, False), (1.0, 5, 9.0, 3e-4, False)],
    "walker2d-medium-v2": [(1.0, 5, 1.0, 3e-4, False), (1.0, 5, 1.0, 3e-4, False)],
    "halfcheetah-medium-replay-v2": [(1.0, 2, 2.0, 3e-4, False), (1.0, 5, 2.0, 3e-4, False)],
    "hopper-medium-replay-v2": [(0.1, 2, 4.0, 3e-4, False), (1.0, 5, 4.0, 3e-4, False)],
    "walker2d-medium-replay-v2": [(0.1, 5, 4.0, 3e-4, False), (1.0, 5, 4.0, 3e-4, False)],
    "halfcheetah-medium-expert-v2": [(1.0, 2, 7.0, 3e-4, False), (1.0, 5, 7.0, 3e-4, False)],
    "hopper-medium-expert-v2": [(1.0, 2, 5.0, 3e-4, False), (1.0, 5, 5.0, 3e-4, False)],
    "walker2d-medium-expert-v2": [(1.0, 2, 5.0, 3e-4, False), (1.0, 5, 5.0, 3e-4, False)],
    "antmaze-umaze-v0": [(0.01, 2, 2.0, 3e-4, False), (0.5, 5, 2.0, 3e-4, False)],
    "antmaze-umaze-diverse-v0": [(0.01, 2, 3.0, 3e-4, True), (2.0, 5, 3.0, 3e-4, True)],
    "antmaze-medium-play-v0": [(0.01, 2, 2.0, 1e-3, True), (2.0, 5, 2.0, 1e-3, True)],
    "antmaze-medium-diverse-v0": [(0.01, 2, 1.0, 3e-4, True), (3.0, 5, 1.0, 3e-4, True)],
    "antmaze-large-play-v0": [(4.5, 2, 10.0, 3e-4, True), (4.5, 5, 10.0, 3e-4, True)],
    "antmaze-large-diverse-v0": [(3.5, 2, 2.0, 3e-4, True), (3.5, 5, 7.0, 3e-4, True)],
}


def test_a_baseline_has_its_published_settings_for_each_task():
    assert {*PUBLISHED, "multigoal-v0", "hopper-demo-v0"} <= set(catalog.known_names())
    found = {task: [run_settings({"env": task, "algo": algo}) for algo in ("cac", "dql")] for task in PUBLISHED}
    assert {
        task: [(c.eta, c.sampling_steps, c.grad_norm, c.lr, c.max_q_backup) for c in both]
        for task, both in found.items()
    } == PUBLISHED


@pytest.mark.parametrize("algo", ["cac", "dql"])
def test_every_task_that_an_algorithm_names_is_one(algo):
    settings = set(yaml.safe_load((CONFIGS / "algorithms" / f"{algo}.yaml").read_text())["tasks"])
    assert settings <= {path.stem for path in (CONFIGS / "tasks").iterdir()}


def test_flags_and_files_beat_what_an_algorithm_sets_for_a_task(mine):
    mine.write_text("sampling_steps: 3\n")
    cfg = run_settings({"env": "walker2d-medium-replay-v2", "algo": "cac", "eta": 0.7}, mine)
    assert (cfg.eta, cfg.sampling_steps) == (0.7, 3)


def test_behaviour_cloning_sets_eta_to_zero():
    assert run_settings(HOPPER | {"bc": True}).eta == 0.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env": "hoper-medium-v2"}, "did you mean hopper-medium-v2"),
        ({"batchsize": 3}, "did you mean batch_size?"),
        ({"preset": "stabel"}, "did you mean stable?"),
        ({"steps": 0}, r"--steps 0 is outside \[1, "),
        ({"steps": "many"}, "--steps is 'many', expected int"),
        ({"gamma": 1.5}, r"--gamma 1.5 is outside \[0, 1\]"),
        ({"sigma_max": 0.001}, "must be above --sigma-min"),
        ({"s1": 5}, "must be at least --s0"),
        ({"candidates": 50}, "need --select softmax or argmax"),
        ({"bc": True, "candidates": 5, "select": "argmax"}, "trains no critic"),
        ({"s1": 10**9}, r"--s1 1000000000 is outside \[1, 1e\+06\]"),
        ({"steps": 10**5000}, "--steps an integer of thousands of digits is outside"),
        ({"env": 10**5000}, "--env is an integer of thousands of digits, expected str"),
        ({"eta": 10**400}, "--eta inf is outside"),
        ({"rho": 0.001}, "--rho 0.001 is outside"),
        ({"steps": True}, "--steps is True, expected int"),
        ({"graph": 1}, "--graph is 1, expected bool"),
        ({"lr": "3e-4"}, "--lr is '3e-4', expected float"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_to_do(settings, words):
    with pytest.raises(UsageError, match=words) as error:
        run_settings(HOPPER | settings)
    assert error.value.exit_code == 2


HINTS = get_type_hints(TrainConfig)


@pytest.mark.parametrize("name", [name for name, hint in HINTS.items() if hint is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_other_than_finite(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} {value} is outside"):
        run_settings(HOPPER | {name: value})


def test_every_number_has_a_range():
    assert set(config._RANGES) == {name for name, hint in HINTS.items() if hint in (int, float)}


@pytest.mark.parametrize("eta", [5, 5.0, np.int64(5), np.float32(5)], ids=lambda eta: type(eta).__name__)
def test_a_number_is_one_setting_in_whatever_type_it_comes(eta):
    cfg = run_settings(
        {"env": np.str_("hopper-medium-v2"), "eta": eta, "steps": np.int32(7), "dataset": Path("x.hdf5")}
    )
    plain = run_settings({"env": "hopper-medium-v2", "eta": 5.0, "steps": 7, "dataset": "x.hdf5"})
    assert repr(cfg) == repr(plain) and hash6(cfg) == hash6(plain) and dump_yaml(cfg) == dump_yaml(plain)


def test_zero_has_one_sign():
    assert hash6(run_settings(HOPPER | {"eta": -0.0})) == hash6(run_settings(HOPPER | {"eta": 0}))


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "+.0003", "'0.0003'", "0.0003", "30e-5"])
def test_a_file_takes_numbers_as_a_float_parser_does(mine, text):
    mine.write_text(f"lr: {text}\n")
    assert run_settings(HOPPER, mine).lr == 3e-4


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n- 2\n", "holds list, expected lines"),
        ("just text\n", "holds str, expected lines"),
        ("!!set {lr, eta}\n", "holds set, expected lines"),
        ("lr: 1\nlr: 2\n", "'lr' is given twice"),
        ("gamma: 0.9\n\nlearning_rate: 1\n", "mine.yaml:3: no setting is called 'learning_rate'"),
        ("gamma: 0.9\nlr: fast\n", "mine.yaml:2: --lr is 'fast', expected float"),
        ("tasks:\n  hopper-medium-v2: {eta: 1.0}\n", "no setting is called 'tasks'"),
        ("lr: nan\n", "--lr nan is outside"),
        ("lr: .inf\n", "--lr inf is outside"),
        ("1: 2\n", "no setting is called 1;"),
        ("? [a, b]\n: 2\n", "is not a YAML file of settings"),
        ("~: 2\n", "no setting is called None;"),
        (f"{'9' * 5000}: 2\n", "is not a YAML file of settings"),
        (f"steps: 0x{'f' * 5000}\n", "--steps an integer of thousands of digits is outside"),
        (f"? 0x{'f' * 5000}\n: 2\n", "no setting is called an integer of thousands of digits"),
        ("a: [1\n", 'mine.yaml", line 2'),
        ("lr: 1\n---\nlr: 2\n", "expected a single document"),
        (LAUGHS + "lr: *a11\n", "no setting is called 'a0'"),
        ("env: &a [*a]\n", r"--env is \[+\.\.\.\]+, expected str"),
        ("env: !!bool x\n", "is not a YAML file of settings: 'x'"),
        ("env: !!timestamp x\n", "is not a YAML file of settings"),
        ("lr: !!float ''\n", "is not a YAML file of settings"),
        ("<<: {lr: 1}\n", "is not a YAML file of settings"),
        ("[" * 3000, "is not a YAML file of settings"),
        (b"env: \xff\xfe\n", "is not a YAML file of settings: 'utf-8' codec"),
        (b"env: \x00\n", "is not a YAML file of settings"),
        ("env: !!python/object/apply:os.system ['true']\n", "is not a YAML file of settings"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_no_settings_is_refused_by_name(mine, text, words):
    mine.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=words) as error:
        run_settings(HOPPER, mine)
    assert str(mine) in str(error.value) or "is outside" in words
    assert len(str(error.value)) < 1000


def test_a_value_of_nested_aliases_is_shown_in_few_letters(mine):
    mine.write_text(f"env:\n  - {LAUGHS.replace(chr(10), chr(10) + '    ')}")
    with pytest.raises(UsageError, match="expected str") as error:
        run_settings({}, mine)
    assert len(str(error.value)) < 100_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is a directory, expected a file of its own; name a YAML file of settings$"),
        ("loop.yaml", r"loop\.yaml cannot be read \(Too many levels"),  # of any user, root too
        ("absent.yaml", r"absent\.yaml does not exist"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name, words):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UsageError, match=words):
        run_settings(HOPPER, tmp_path / name)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=4)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)
NAMES = st.sampled_from([field.name for field in fields(TrainConfig)]) | st.text(max_size=12)


def _merges_or_refuses(flags, file: Path | None = None) -> None:
    try:
        cfg = run_settings(flags, file)
    except UsageError as error:
        assert str(error)
    else:
        assert validate(cfg) == cfg


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_no_flags_end_in_an_error_without_advice(flags):
    _merges_or_refuses(HOPPER | flags)


TAGS = (
    "!!int !!float !!map !!bool !!binary !!timestamp !!omap &a *a 0x 1:30 2020-01-01 .nan 1e999 lr eta env --- ... <<:"
)
YAML_BITS = st.sampled_from([*"[]{}:,-?!&*|>'\"#%@`~\n\t ", "\n  ", ": ", "- ", *(f"{tag} " for tag in TAGS.split())])


@given(st.lists(YAML_BITS | st.text(max_size=5) | NAMES, max_size=12).map("".join) | st.binary(max_size=40))
def test_no_file_ends_in_an_error_without_advice(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("yaml") / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    _merges_or_refuses(HOPPER, file)


@pytest.mark.parametrize("named", ["run", "run/ckpt/step-00000010"])
def test_a_run_that_resume_names_brings_its_own_settings(tmp_path: Path, named):
    first = run_settings({"env": "hopper-medium-v2", "preset": "paper", "eta": 7, "steps": 30, "run_dir": "elsewhere"})
    (tmp_path / "run/ckpt/step-00000010").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(dump_yaml(first))
    again = run_settings({"resume": tmp_path / named, "log_every": 5})
    assert again == replace(first, resume=str(tmp_path / named), run_dir=None, log_every=5)
    assert hash6(again) == hash6(first)


@pytest.mark.parametrize("resume", ["x" * 5000, "a\0b", "no/such/run"], ids=["too long", "NUL", "absent"])
def test_a_run_that_is_not_there_leaves_the_presets(resume):
    assert run_settings(HOPPER | {"resume": resume}).grad_norm == 9.0


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


@pytest.mark.parametrize(
    "given",
    ['{"b": [1, {"d": 2, "c": null}], "a": "x"}', {"a": "x", "b": [1, {"c": None, "d": 2}]}],
    ids=["text", "mapping"],
)
def test_arguments_of_the_environment_have_one_form(given):
    cfg = run_settings({"env": "Hopper-v5", "env_kwargs": given})
    assert cfg.env_kwargs == '{"a": "x", "b": [1, {"c": null, "d": 2}]}'
    assert hash6(cfg) != hash6(run_settings({"env": "Hopper-v5"}))
    assert run_settings({"env": "Hopper-v5", "env_kwargs": "{}"}).env_kwargs is None


def test_a_file_gives_the_arguments_of_the_environment_as_a_mapping_and_reads_back_what_a_run_saves(mine):
    mine.write_text("env: Hopper-v5\nenv_kwargs:\n  robot: a\n")
    cfg = run_settings({}, mine)
    assert cfg.env_kwargs == '{"robot": "a"}'
    mine.write_text(dump_yaml(cfg))
    assert run_settings({}, mine) == cfg


ENDLESS: dict[str, object] = {}
ENDLESS["a"] = ENDLESS
NESTED: object = {}
for _ in range(40):
    NESTED = {"a": NESTED, "b": NESTED}


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("robot=a", "'robot=a' is no JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[1]", "is '[1]'"),
        ("1", "is '1'"),
        ({1: 2}, "is {1: 2}"),
        ({"a": {1, 2}}, "is no JSON (Object of type set is not JSON serializable)"),
        (ENDLESS, "is no JSON (Circular reference detected)"),
        (NESTED, "is no JSON (longer than 100,000 characters)"),
        ("[" * 100_000, "is no JSON (maximum recursion depth exceeded"),
    ],
    ids=["no JSON", "a list", "a number", "no names", "a set", "endless", "nested", "deep"],
)
def test_arguments_that_are_no_json_object_are_refused_with_an_example(given, seen):
    with pytest.raises(UsageError) as error:
        run_settings({"env": "Hopper-v5", "env_kwargs": given})
    assert seen in str(error.value) and len(str(error.value)) < 300
    assert str(error.value).endswith("""expected a JSON object: --env-kwargs '{"robot": "a"}'""")


def test_every_setting_has_a_line_of_help():
    assert all(field.metadata["help"] for field in fields(TrainConfig))


def test_the_list_of_flags_is_frozen():
    # A new flag needs a reason: say in the commit why the existing ones cannot serve, then raise this number.
    assert len(asdict(TrainConfig())) == 77


def test_defaults_are_those_of_the_default_preset():
    default = run_settings({"env": "HalfCheetah-v5"})
    assert default.preset == TrainConfig.preset
    assert validate(default) == default


def test_a_sweep_across_members_has_one_value_each():
    cfg = validate(TrainConfig(env="x", seeds=3, etas="1,5,10", lrs="1e-4, 3e-4,1e-3"))
    assert member_values(cfg, "eta") == [1.0, 5.0, 10.0] and member_values(cfg, "lr") == [1e-4, 3e-4, 1e-3]
    assert member_values(TrainConfig(env="x", seeds=2, eta=4.0), "eta") == [4.0, 4.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"etas": "1,5"}, "has 2 values for --seeds 3"),
        ({"etas": "1,,5"}, "is not a list of numbers"),
        ({"lrs": "1,2,nan"}, "--lrs nan is outside"),
        ({"etas": "1,2,-3"}, "--etas -3.0 is outside"),
        ({"etas": "1,2,3", "bc": True}, "leave out --etas"),
    ],
)
def test_a_sweep_that_does_not_fit_the_members_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        validate(TrainConfig(env="x", seeds=3, **changes))
