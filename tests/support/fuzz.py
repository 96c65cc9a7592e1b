"""Seeded damage to every kind of file that the project reads; a process for each, as a library in C may die of it.

`python fuzz.py FIRST FOLDER KIND=COUNT ...` makes inputs FIRST .. FIRST + COUNT - 1 of each kind, and prints one JSON
object for each: how many were refused by a typed error, how many read in spite of it, and every other outcome, or the
input that the process died of. A kind is the files, and what reads the damaged one as the product does; it imports
torch only if it reads with it, as that takes longer than most. Several kinds are forked from a process that did.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ogbench_cases
import yaml
from data_cases import HALFCHEETAH, columns, write

from gtp_fast.data import catalog, dataset
from gtp_fast.data.check import check
from gtp_fast.data.spec import DataSpec
from gtp_fast.data.trust import module_of
from gtp_fast.errors import GtpError

SECONDS = 20  # an input that takes longer hangs
MEMORY = 8 << 30  # bytes beyond those of an idle process
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
RUNNING += ("pickle.find_class", "socket.connect")
WORKER = "from gtp_fast.evaluation.serve import serve"  # of a run: it builds the environment that was typed
CANARY = "canary:X-v0"  # its module lies where any import finds it; no file may have it imported
NAMES = {"env", "envs", "env_kwargs", "dataset", "algo", "data_source"}  # keys whose values name things


def damage(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut, grow, move, repeat or blank a part of a file, once to three times."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        size = len(data)
        at, length = chance.randrange(size + 1), chance.choice((1, 2, 4, 8, 64, 512))
        match chance.choice(("flip", "flip", "flip", "value", "cut", "grow", "move", "blank", "remove")):
            case "flip" if size:
                data[at % size] ^= 1 << chance.randrange(8)
            case "value":  # what a length, a type or a digit may turn into
                data[at : at + length] = chance.choice((b"\xff", b"\x00", b"\x7f", b"9", b'"', b"{", b"-")) * length
            case "cut":
                del data[at:]
            case "grow":
                data += chance.randbytes(length)
            case "move" if size:
                begin = chance.randrange(size)
                data[at : at + length] = data[begin : begin + length]
            case "blank":
                data[at : at + length] = bytes(len(data[at : at + length]))
            case "remove":
                del data[at : at + length]
    return bytes(data)


VALUES = (None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "1", CANARY, [], [[]], [1.5, "x"], {}, {"x": [0]})


def misput(content: bytes, chance: random.Random) -> bytes:
    """Put something else in the place of a value of JSON or YAML, or leave it out: the file stays one of its format."""
    whole: Any = yaml.safe_load(content)
    inside, key = whole, chance.choice(list(whole))
    while isinstance(inside[key], (dict, list)) and inside[key] and chance.random() < 0.7:
        inside = inside[key]
        key = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    if chance.random() < 0.2:
        del inside[key]
    else:
        inside[key] = chance.choice(VALUES)
    return json.dumps(whole).encode()


def damaged(file: Path, content: bytes, chance: random.Random) -> bytes:
    """Damage the bytes of a file, or what it says where it is text of known form."""
    if file.suffix in (".json", ".yaml") and chance.random() < 0.5:
        return misput(content, chance)
    return damage(content, chance)


def planted(file: Path, content: bytes) -> list[bytes]:
    """Return a file of JSON or YAML with the canary in the place of each value that names something."""
    whole: Any = yaml.safe_load(content) if file.suffix in (".json", ".yaml") else None
    names = sorted(NAMES & set(whole)) if isinstance(whole, dict) else []
    forms = {"envs": [CANARY], "env_kwargs": json.dumps({"env_id": CANARY})}
    found = [whole | {name: forms.get(name, CANARY)} for name in names]
    if names == [] and isinstance(whole, dict) and "observation_space" in whole:  # of Minari, which can build a spec
        spec = {
            "env_spec": importlib.import_module("gymnasium").envs.registration.EnvSpec("X-v0", "canary:X").to_json()
        }
        bare = {name: value for name, value in whole.items() if not name.endswith("_space")}
        found += [some | spec | form for some in (whole, bare) for form in ({}, {"data_format": "arrow"})]
    return [json.dumps(one).encode() for one in found]


def _no_code(told: list[str], canaries: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Return a hook that notes what runs a file's text: no event tells of importlib's imports but their `exec`."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "exec" and str(getattr(args[0], "co_filename", "")).startswith(str(canaries)):
            told.append(f"imported {args[0].co_filename}")
        if event == "subprocess.Popen" and WORKER in str(args):
            return
        if event in RUNNING or (event == "exec" and str(getattr(args[0], "co_filename", "<")).startswith("<")):
            told.append(f"{event} {str(args)[:80]}")

    return hook


def _hang(*_: object) -> None:
    raise TimeoutError(f"an input took more than {SECONDS} s")


Kind = tuple[list[Path], Callable[[Path], Any]]
CUBE = "cube-single-play-singletask-v0"


def hdf5(folder: Path) -> Kind:
    """A data set, read and validated."""
    file = write(folder / "data.hdf5", columns(episodes=2, length=10))
    return [file], lambda _: dataset.load(catalog.resolve("HalfCheetah-v5"), file)


def pixels(folder: Path) -> Kind:
    """A data set of pictures with last observations, to its place in a buffer."""
    file = write(folder / "data.hdf5", frames())
    return [file], lambda _: dataset.load(DataSpec("frames", "file"), file)


def frames() -> dict[str, Any]:
    """Return two episodes of ten pictures."""
    values, rng = columns(episodes=2, length=10, sizes=(1, 2)), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (22, 8, 8, 1), dtype=np.uint8)
    return values | {"observations": pictures[:20], "infos/final_observations": pictures[20:]}


def npz(folder: Path) -> Kind:
    """An archive of OGBench, and arrays whose archive vouches for the damage."""
    file = ogbench_cases.write(folder / "data.npz")
    archive, arrays = folder / "foreign.npz", folder / "arrays"
    zipfile.ZipFile(file).extractall(arrays)

    def read(damaged: Path) -> None:
        if damaged != file:
            with zipfile.ZipFile(archive, "w") as out:
                for array in sorted(arrays.iterdir()):
                    out.write(array, array.name)
        dataset.load(catalog.resolve(CUBE), file if damaged == file else archive)

    return [file, *sorted(arrays.iterdir())], read


def minari(folder: Path) -> Kind:
    """A directory of Minari's, with observations in parts and actions that are scaled: its rows and its description."""
    place = minari_set(folder, "nested")
    return sorted(place.glob("data/*.*")), lambda _: dataset.load(DataSpec("own", "file"), place)


def minari_set(folder: Path, name: str) -> Path:
    """Write a set by Minari's own writer below a folder."""
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
    place = folder / "shards"
    place.mkdir(exist_ok=True)
    files = [write(place / f"{name}.hdf5", columns(episodes=2, length=10)) for name in "abc"]
    return files, lambda _: dataset.load(catalog.resolve("HalfCheetah-v5"), place)


def checked(folder: Path) -> Kind:
    """What `data check` looks at, of every form; what it calls ready is loaded, what it refuses is not."""
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
    """Return settings and a run with them, evaluated at its end: a copy of one that the kinds beside it share."""
    from run_cases import tiny

    from gtp_fast.runs.directory import RunDir
    from gtp_fast.training.train import train

    shared, evaluated = folder.parent / "shared", {"eval_every": 30, "eval_max_steps": 20}
    if not shared.exists():
        shared.mkdir()
        train(tiny(shared, **evaluated))
    shutil.copytree(shared, folder, dirs_exist_ok=True)
    cfg = tiny(folder, **evaluated)
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
    state = algorithms.init_state(cfg, *HALFCHEETAH, "cpu")
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
    """A file of settings, to the environment that a run builds first."""
    from gtp_fast.evaluation.environments import with_bounds

    importlib.import_module("gymnasium")  # a damaged name is looked up there, and its import runs code of its own
    file = folder / "settings.yaml"
    named = "env: Pendulum-v1\nenv_kwargs: {g: 9.81}\nrun_dir: runs/a\n"
    file.write_text(f"{named}steps: 2000\neta: 5.0\nlr: 3e-4\nbc: false\nseeds: 2\n")

    def read(_: Path) -> None:
        cfg = catalog.run_settings({}, file)
        with_bounds(catalog.resolve(cfg.env, cfg.env_kwargs), needed=True)

    return [file], read


def sweep(folder: Path) -> Kind:
    """A file of a sweep, to the plan that is printed before anything runs."""
    from gtp_fast.evaluation.environments import with_bounds
    from gtp_fast.experiments.sweep import plan

    importlib.import_module("gymnasium")  # as in `settings`
    file = folder / "sweep.yaml"
    file.write_text(
        "envs: [hopper-demo-v0, multigoal-v0]\nseeds: 4\nseeds_per_trial: 2\n"
        "grid:\n  lr: [3e-4, 1e-3]\n  sampling-steps: [2, 5]\nset:\n  bc: false\n  steps: 2000\n"
    )

    def read(_: Path) -> None:
        planned = plan.plan(plan.read(file, {"out": folder / "runs"}), jobs=2)
        json.dumps(plan.rows(planned))
        plan.text(planned)
        for one in planned.trials:  # as its process does, to which these settings are typed
            spec = catalog.resolve(one.cfg.env, one.cfg.env_kwargs)
            if module_of(one.cfg.env):
                with_bounds(spec, needed=True)

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
    from gtp_fast.experiments import report as product

    run = _run(folder)[1].path
    names = ("environment.json", "metrics.jsonl", "config.yaml")
    files = [*(run / name for name in names), *sorted(run.glob("eval/step-*.json"))]
    return files, lambda _: product.draw_report([run], folder / "report")


def evaluated(folder: Path) -> Kind:
    """A run's settings, with which its policy is scored."""
    from gtp_fast.evaluation.evaluate import EvalConfig, eval_run

    run = _run(folder)[1].path
    return [run / "config.yaml"], lambda _: eval_run(run, EvalConfig(episodes=1, workers=1))


def imports(folder: Path) -> Kind:
    """A reader as none may be: it imports what its file names."""
    file = folder / "names.yaml"
    file.write_text("env: math:X-v0")
    return [file], lambda _: importlib.import_module(yaml.safe_load(file.read_bytes())["env"].split(":")[0])


def unsafe(folder: Path) -> Kind:
    """A reader as none may be: what it reads it runs, and its errors say nothing."""
    file = folder / "numbers.py"
    file.write_text("[1, 2, 3]")
    return [file], lambda _: eval(file.read_text())  # noqa: S307 (it is there to be caught)


KINDS = {kind.__name__: kind for kind in (hdf5, pixels, npz, minari, shards, checked)}
KINDS |= {kind.__name__: kind for kind in (altered, foreign, settings, sweep, described, report, evaluated)}
KINDS |= {kind.__name__: kind for kind in (imports, unsafe)}


def main(kind: str, first: int, count: int, folder: Path) -> None:
    """Damage, read, restore; print what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    files, read = KINDS[kind](folder)
    for file in files:
        read(file)  # what is imported late is imported now
    whole = {file: file.read_bytes() for file in files}
    ran: list[str] = []
    canaries = folder / "canaries"
    canaries.mkdir(exist_ok=True)
    (canaries / "canary.py").write_text("import gymnasium\ngymnasium.register('X-v0', 'canary:X')\n")
    sys.path.insert(0, str(canaries))
    sys.addaudithook(_no_code(ran, canaries))
    signal.signal(signal.SIGALRM, _hang)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    counts, other = {"refused": 0, "read": 0, "planted": 0}, []

    def tried(file: Path, content: bytes, name: str) -> str:
        """Read a file with other content, restore all that was there, and say what came of it."""
        file.write_bytes(content)
        (folder / "now").write_text(name)
        signal.alarm(SECONDS)
        came = "read"
        try:
            read(file)
        except GtpError:
            came = "refused"
        except BaseException as error:
            came = "failed"
            other.append(f"{name}: {type(error).__name__}: {error}"[:300])
        signal.alarm(0)
        for other_file, before in whole.items():
            other_file.write_bytes(before)
        return came

    for number in range(first, first + count):
        chance = random.Random(f"{kind} {number}")
        file = chance.choice(files)
        came = tried(file, damaged(file, whole[file], chance), f"{kind} {number} {file.name}")
        counts[came] = counts.get(came, 0) + 1
    for file in files:
        for content in planted(file, whole[file]):
            tried(file, content, f"{kind} planted {file.name}")
            counts["planted"] += 1
    sys.stdout.write(json.dumps({**counts, "other": other, "ran": ran}) + "\n")


LATE = ("gtp_fast.evaluation.evaluate", "gtp_fast.experiments.figures", "gtp_fast.training.train", "gymnasium")


def forked(kind: str, first: int, count: int, folder: Path) -> None:
    """Do so in a process of its own; print what input it died of, if it did."""
    if (child := os.fork()) == 0:
        main(kind, first, count, folder)
        sys.stdout.flush()
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        now = folder / "now"
        died = now.read_text() if now.exists() else "the start"
        sys.stdout.write(json.dumps({"died": f"{os.waitstatus_to_exitcode(status)} at {died}"}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    counts = dict(word.split("=") for word in sys.argv[3:])
    for module in LATE if len(counts) > 1 else ():
        importlib.import_module(module)
    for name, wanted in counts.items():
        forked(name, int(sys.argv[1]), int(wanted), Path(sys.argv[2]) / name)
