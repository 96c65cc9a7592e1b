"""What is damaged, kind by kind: the files, and what reads the damaged one as the product does.

Each kind imports what it reads with: every kind is a process of its own, and torch takes longer than most of them.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ogbench_cases
from data_cases import HALFCHEETAH, columns, write

Kind = tuple[list[Path], Callable[[Path], Any]]
CUBE = "cube-single-play-singletask-v0"


def hdf5(folder: Path) -> Kind:
    """A data set, read and validated."""
    from gtp_fast.data import catalog, dataset

    file = write(folder / "data.hdf5", columns(episodes=2, length=10))
    return [file], lambda _: dataset.load(catalog.resolve("HalfCheetah-v5"), file)


def pixels(folder: Path) -> Kind:
    """A data set of pictures with last observations, to its place in a buffer."""
    from gtp_fast.data import dataset
    from gtp_fast.data.spec import DataSpec

    file = write(folder / "data.hdf5", frames())
    return [file], lambda _: dataset.load(DataSpec("frames", "file"), file)


def frames() -> dict[str, Any]:
    """Return two episodes of ten pictures."""
    values, rng = columns(episodes=2, length=10, sizes=(1, 2)), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (22, 8, 8, 1), dtype=np.uint8)
    return values | {"observations": pictures[:20], "infos/final_observations": pictures[20:]}


def npz(folder: Path) -> Kind:
    """An archive of OGBench, and arrays whose archive vouches for the damage."""
    from gtp_fast.data import catalog, dataset

    file = ogbench_cases.write(folder / "data.npz")
    archive, arrays = folder / "foreign.npz", folder / "arrays"
    zipfile.ZipFile(file).extractall(arrays)

    def read(damaged: Path) -> None:
        if damaged != file:
            packed(archive, arrays)
        dataset.load(catalog.resolve(CUBE), file if damaged == file else archive)

    return [file, *sorted(arrays.iterdir())], read


def packed(archive: Path, arrays: Path) -> Path:
    """Write an archive of whatever lies in a folder."""
    with zipfile.ZipFile(archive, "w") as out:
        for array in sorted(arrays.iterdir()):
            out.write(array, array.name)
    return archive


def minari(folder: Path) -> Kind:
    """A directory of Minari's, with observations in parts and actions that are scaled: its rows and its description."""
    from gtp_fast.data import dataset
    from gtp_fast.data.spec import DataSpec

    place = minari_set(folder, "nested")
    return sorted(place.glob("data/*.*")), lambda _: dataset.load(DataSpec("own", "file"), place)


def minari_set(folder: Path, name: str) -> Path:
    """Write a set by Minari's own writer below a folder."""
    import os
    import warnings

    from gymnasium.spaces import Box, Dict, Discrete, Tuple
    from minari_cases import collect

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    inner = Tuple([Discrete(4, start=2), Box(-1, 1, (2,), np.float32)])
    with warnings.catch_warnings(action="ignore"):  # of metadata that is left out
        observations = Dict({"observation": Box(-100, 100, (3,), np.float32), "rest": inner})
        return collect(f"{name}/x-v0", observations, Box(-2, 2, (2,), np.float32), ref_min_score=0, ref_max_score=9.5)


def shards(folder: Path) -> Kind:
    """A data set in three files."""
    from gtp_fast.data import catalog, dataset

    place = folder / "shards"
    place.mkdir(exist_ok=True)
    files = [write(place / f"{name}.hdf5", columns(episodes=2, length=10)) for name in "abc"]
    return files, lambda _: dataset.load(catalog.resolve("HalfCheetah-v5"), place)


def checked(folder: Path) -> Kind:
    """What `data check` looks at, of every form; what it calls ready is loaded, what it refuses is not."""
    from gtp_fast.data import catalog, dataset
    from gtp_fast.data.check import check
    from gtp_fast.data.spec import DataSpec
    from gtp_fast.errors import GtpError

    alone, pictures = hdf5(folder)[0], [write(folder / "frames.hdf5", frames())]
    several, archive = shards(folder)[0], [ogbench_cases.write(folder / "data.npz")]
    nested = sorted(minari_set(folder, "checked").glob("data/*.*"))
    body, own, cube = catalog.resolve("HalfCheetah-v5"), DataSpec("own", "file"), catalog.resolve(CUBE)
    sources = [(alone, body), (pictures, None), (several, None), (archive, cube), (nested, None)]
    places = {file: (files, spec) for files, spec in sources for file in files}

    def read(damaged: Path) -> None:
        files, spec = places[damaged]
        place = files[0] if len(files) == 1 else files[0].parent
        found = check(place, spec)
        json.dumps(found, allow_nan=False)
        clips = {fault["key"] for fault in found["faults"]} == {"actions"}
        try:
            dataset.load(spec or own, place)
        except GtpError:
            assert not found["ready"], "ready, and refused"
            raise
        assert found["ready"] or clips, "refused, and loaded"

    return list(places), read


def _run(folder: Path) -> Any:
    from run_cases import tiny

    from gtp_fast.runs.directory import RunDir
    from gtp_fast.training.train import train

    cfg = tiny(folder, eval_every=30)
    train(cfg)
    return cfg, RunDir(Path(str(cfg.run_dir)))


def altered(folder: Path) -> Kind:
    """A checkpoint whose manifest knows nothing of the damage: any file of it."""
    from gtp_fast.runs import checkpoint

    _, run = _run(folder)
    place = run.checkpoint(checkpoint.steps(run)[-1])
    return sorted(place.iterdir()), lambda _: checkpoint.load(place)


def foreign(folder: Path) -> Kind:
    """A checkpoint whose manifest vouches for the damage: loaded as a state, and as a policy that acts."""
    from gtp_fast import algorithms, load_policy
    from gtp_fast.runs import checkpoint

    cfg, run = _run(folder)
    place = run.checkpoint(checkpoint.steps(run)[-1])
    state = algorithms.of(cfg).init_state(cfg, *HALFCHEETAH, "cpu")
    manifest = place / checkpoint.MANIFEST

    def read(_: Path) -> None:
        files = [path for path in place.iterdir() if path != manifest]
        entries = {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in files
        }
        manifest.write_text(json.dumps({"format": checkpoint.FORMAT, "files": entries}))
        policy = load_policy(place)
        policy.act_members(np.zeros((policy.members, 1, policy.config.obs_dim), np.float32))
        state.load_(checkpoint.load(place).tensors)

    return sorted(set(place.iterdir()) - {manifest}), read


def settings(folder: Path) -> Kind:
    """A file of settings."""
    from gtp_fast.data.catalog import run_settings

    file = folder / "settings.yaml"
    file.write_text("env: hopper-demo-v0\nsteps: 2000\neta: 5.0\nlr: 3e-4\nbc: false\nseeds: 2\nrun_dir: runs/a\n")
    return [file], lambda _: run_settings({}, file)


def sweep(folder: Path) -> Kind:
    """A file of a sweep, to the plan that is printed before anything runs."""
    from gtp_fast.experiments.sweep import plan

    file = folder / "sweep.yaml"
    file.write_text(
        "envs: [hopper-demo-v0, multigoal-v0]\nseeds: 4\nseeds_per_trial: 2\n"
        "grid:\n  lr: [3e-4, 1e-3]\n  sampling-steps: [2, 5]\nset:\n  bc: false\n  steps: 2000\n"
    )

    def read(_: Path) -> None:
        planned = plan.plan(plan.read(file, {"out": folder / "runs"}), jobs=2)
        json.dumps(plan.rows(planned))
        plan.text(planned)

    return [file], read


def described(folder: Path) -> Kind:
    """What a run says of itself, read before it is continued, and where a sweep shows how far it is."""
    from gtp_fast.runs import metrics, records
    from gtp_fast.training.train import train

    cfg, run = _run(folder)
    names = [run.path / "environment.json", run.path / "config.yaml", run.metrics, run.log, *run.evaluations.iterdir()]

    def read(_: Path) -> None:
        records.read_progress(run)
        metrics.truncate_after(run.metrics, 10)
        metrics.truncate_log_after(run.log, 10)
        list(records.read_evaluations(run))
        train(cfg)

    return names, read


def report(folder: Path) -> Kind:
    """What a report reads of a run, to its page and its picture."""
    from run_cases import tiny

    from gtp_fast.experiments import report as product
    from gtp_fast.training.train import train

    run = Path(train(tiny(folder, eval_every=10)).run_dir)
    files = [
        run / "environment.json",
        run / "metrics.jsonl",
        run / "config.yaml",
        *sorted(run.glob("eval/step-*.json")),
    ]
    return files, lambda _: product.draw_report([run], folder / "report")


def unsafe(folder: Path) -> Kind:
    """A reader as none may be: what it reads it runs, and its errors say nothing."""
    file = folder / "numbers.py"
    file.write_text("[1, 2, 3]")
    return [file], lambda _: eval(file.read_text())  # noqa: S307 (it is there to be caught)


KINDS = {
    kind.__name__: kind
    for kind in (
        hdf5,
        pixels,
        npz,
        minari,
        shards,
        checked,
        altered,
        foreign,
        settings,
        sweep,
        described,
        report,
        unsafe,
    )
}
