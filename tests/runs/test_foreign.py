"""A run directory that somebody else made: no link in it is followed, and nothing but its own files is opened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from families import family
from run_cases import back_to, tiny

import gtp_fast
from gtp_fast.errors import CheckpointError, ForeignFileError, GtpError, UsageError
from gtp_fast.evaluation import failures
from gtp_fast.evaluation.failures import RolloutError
from gtp_fast.experiments.report import draw_report
from gtp_fast.experiments.trials import Trial, last_words, start
from gtp_fast.files import PARTIAL
from gtp_fast.locks import holder
from gtp_fast.runs import checkpoint, extend, metrics, records
from gtp_fast.runs.directory import RunDir, step_of
from gtp_fast.training.train import train

SECONDS = 30  # what takes longer hangs
LAST = "ckpt/step-00000020"
FOLDERS = ("ckpt", "eval", LAST, "ckpt/best")
FILES = ("config.yaml", "environment.json", "policy.json", "metrics.jsonl", "train.log", "LOCK", "failure.json")
FILES += ("eval/step-00000020.json", *(f"{LAST}/{name}" for name in ("state.safetensors", "policy.safetensors")))
FILES += (f"{LAST}/state.json", f"{LAST}/MANIFEST.json", f"{LAST}/pending-eval-00000030.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 30 steps that was cut off after step 20, with an evaluation and a best policy; nothing changes it."""
    folder = tmp_path_factory.mktemp("trained")
    run = RunDir(Path(train(tiny(folder, eval_every=20, eval_max_steps=20)).run_dir))
    last = checkpoint.load(run.checkpoint(20))
    policy, _ = checkpoint.load_policy(run.checkpoint(20))
    checkpoint.save(run, 20, last.tensors, policy, last.meta, {30: policy})
    return back_to(run.path, 20).path


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """Another's folder, of which nothing may be changed, removed or written; nothing may hang meanwhile."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "precious").write_text("two years")
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1.0)
    yield folder
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert [file.name for file in folder.iterdir()] == ["precious"]
    assert (folder / "precious").read_text() == "two years"


def _hang(*_: object) -> None:
    raise AssertionError(f"it took more than {SECONDS} s")  # no OSError, which a reader may do without


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunDir:
    shutil.copy(trained.parent / "data.hdf5", tmp_path)
    return RunDir(Path(shutil.copytree(trained, tmp_path / "run")))


Plant = Callable[[Path, Path], object]
PLANTS: dict[str, Plant] = {
    "a link": lambda other, place: place.symlink_to(other / "precious"),
    "a link to nothing": lambda other, place: place.symlink_to(other / "absent"),
    "a link to a device": lambda other, place: place.symlink_to("/dev/zero"),
    "a pipe": lambda other, place: os.mkfifo(place),
    "a directory": lambda other, place: place.mkdir(),
}
TRAINED_WITH = [(name, plant) for name in FILES for plant in ("a link", "a link to nothing", "a pipe")]
READERS: dict[str, Callable[[RunDir], object]] = {
    "load_policy": lambda run: gtp_fast.load_policy(run.path, device="cpu"),
    "load_policy, best": lambda run: gtp_fast.load_policy(run.path, best=True, device="cpu"),
    "load_policy, checkpoint": lambda run: gtp_fast.load_policy(run.path / LAST, device="cpu"),
    "read_run": lambda run: records.read_run(run.path),
    "read_progress": records.read_progress,
    "read_seconds": records.read_seconds,
    "read_speeds": records.read_speeds,
    "read_failure": records.read_failure,
    "read_absent": records.read_absent,
    "finished": lambda run: records.finished(run, 20),
    "steps_of": extend.steps_of,
    "holder": lambda run: holder(run.lock),
}


def _replace(run: RunDir, name: str, plant: Plant, other: Path) -> None:
    place = run.path / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    plant(other, place)


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("name", FILES)
def test_a_reader_does_without_what_is_no_file_or_names_it(run, other, name, plant):
    _replace(run, name, plant, other)
    for read in READERS.values():
        with suppress(GtpError):
            read(run)


@pytest.mark.parametrize("planted", family(TRAINED_WITH, quick=TRAINED_WITH[::4]), ids="-".join)
def test_training_goes_on_without_what_is_no_file_or_names_it(run, other, tmp_path, planted):
    name, plant = planted
    _replace(run, name, PLANTS[plant], other)
    with suppress(GtpError):
        train(tiny(tmp_path))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_a_link_is_not_entered(run, other, tmp_path, name):
    real = tmp_path / "elsewhere"
    shutil.move(run.path / name, real)
    (run.path / name).symlink_to(real, target_is_directory=True)
    before = sorted((path, path.stat().st_mtime_ns) for path in real.rglob("*"))
    said = []
    for use in (*READERS.values(), lambda _: train(tiny(tmp_path))):
        try:
            use(run)
        except GtpError as error:
            said.append(str(error))
    assert sorted((path, path.stat().st_mtime_ns) for path in real.rglob("*")) == before
    assert any(f"{name} is a link, expected a directory of its own" in text for text in said)


def test_a_run_behind_a_link_that_the_user_typed_is_continued(run, tmp_path):
    (tmp_path / "scratch").mkdir()
    moved = run.path.rename(tmp_path / "scratch/run")
    run.path.symlink_to(moved, target_is_directory=True)
    train(tiny(tmp_path))
    assert checkpoint.steps(RunDir(moved)) == [10, 20, 30]


def test_checkpoints_behind_links_are_passed_over_and_never_started_again_from_zero(run, tmp_path, other):
    for step in checkpoint.steps(run):
        moved = run.checkpoint(step).rename(tmp_path / f"moved-{step}")
        run.checkpoint(step).symlink_to(moved, target_is_directory=True)
    with pytest.raises(CheckpointError, match=r"none of the . checkpoints .* is a link"):
        train(tiny(tmp_path))


def test_removing_a_checkpoint_that_is_a_link_removes_the_link(run, tmp_path):
    moved = run.checkpoint(20).rename(tmp_path / "moved")
    run.checkpoint(20).symlink_to(moved, target_is_directory=True)
    checkpoint.drop_after(run, 10)
    assert checkpoint.steps(run) == [10] and (moved / checkpoint.STATE).exists()


def test_what_a_killed_process_left_is_swept_and_no_link_in_it_followed(run, other):
    (run.checkpoints / f"{PARTIAL}7-step").symlink_to(other, target_is_directory=True)
    (run.path / f"{PARTIAL}old-eval").symlink_to(other, target_is_directory=True)
    with run.claim():
        assert run.swept()


def test_a_report_is_not_drawn_into_another_folder(run, other):
    (run.path / "report").symlink_to(other, target_is_directory=True)
    with pytest.raises(ForeignFileError, match="report is a link"):
        draw_report([run.path], run.report)


def test_a_traceback_is_not_appended_to_anothers_file(run, other):
    _replace(run, "train.log", PLANTS["a link"], other)
    assert failures.append(run.log, RolloutError("it failed", "Traceback")) == ""


def test_a_trials_console_is_no_link(run, other):
    trial = Trial("x", {}, run.path, 30)
    trial.console.symlink_to(other / "precious")
    with pytest.raises(ForeignFileError, match="is a link"):
        start(trial)
    assert last_words(trial) == "it said nothing"


def test_the_refusal_names_the_file_and_what_to_do(run, other, tmp_path):
    _replace(run, "metrics.jsonl", PLANTS["a link"], other)
    with pytest.raises(UsageError) as error:
        train(tiny(tmp_path))
    assert str(error.value) == (
        f"{run.metrics} is a link, expected a file of its own; put the file itself there, or remove it"
    )


@pytest.mark.parametrize(
    "name", ["step-²", "step-00000²", "step-" + "9" * 200, "step-5", "step-000000050", "step-٣٣٣٣٣٣٣٣", "step-"]
)
def test_a_name_that_no_run_writes_is_no_step(run, name):
    (run.checkpoints / name).mkdir()
    (run.evaluations / f"{name}.json").write_text("{}")
    assert step_of(name) is None
    assert checkpoint.steps(run) == [10, 20] and extend.later_evaluations(run, 5) == [20, 30]


DEEP, LONG = "[" * 20_000, "9" * 5_000


@pytest.mark.parametrize("content", [DEEP, f'{{"step": {LONG}}}'], ids=["deep", "long"])
@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("safetensors")])
def test_deep_nesting_and_long_numbers_are_refused_like_any_damage(run, tmp_path, name, content):
    (run.path / name).write_text(f"step {content} {content} steps/s\n" if name == "train.log" else content)
    for use in (*READERS.values(), lambda _: metrics.truncate_log_after(run.log, 20)):
        with suppress(GtpError):
            use(run)
    with suppress(GtpError):
        train(tiny(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_fit_in_memory_is_refused_or_read_by_the_line(run, tmp_path, name):
    os.truncate(run.path / name, 1 << 42) if (run.path / name).exists() else None  # it takes no space
    if name in ("metrics.jsonl", "train.log"):
        os.truncate(run.path / name, 1 << 25)  # a line that is read in pieces
    for read in READERS.values():
        with suppress(GtpError):
            read(run)


def test_a_checkpoint_larger_than_this_machines_memory_is_refused_before_it_is_read(run):
    state, size = run.path / LAST / "state.safetensors", 1 << 42
    os.truncate(state, size)
    manifest = json.loads((run.path / LAST / "MANIFEST.json").read_text())
    manifest["files"][state.name]["bytes"] = size
    (run.path / LAST / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"has 4,398\.\d GB, more than this machine's memory of"):
        checkpoint.load(run.path / LAST)
