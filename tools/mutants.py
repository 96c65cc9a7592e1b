"""Mutation testing: change one place of a module that decides, run that module's tests, and see whether they notice.

`python tools/mutants.py --count 200` draws seeded mutants from the modules below and prints, for each module, how many
were made, noticed and survived, and every survivor. A mutant lives in a copy of the checkout in a temporary folder; a
process that has imported torch is forked for each, so that a mutant costs its tests and little more. A mutant that
hangs is ended, and counts as noticed. Each module's tests must pass on the unchanged copy first.

Why not mutmut (3.8.1) or cosmic-ray (8.7.0): mutmut changes functions alone, none that is decorated, and runs the tests
that it saw call them in its own process, while many of ours start processes; cosmic-ray writes the mutants into the
checkout, and starts a command, which imports torch, for each.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ORACLE = "promises/test_algorithms.py::test_steps_follow_the_slow_implementation"
PHASES = "test_device.py::test_a_profile_names_the_phases_of_the_step_and_writes_a_trace"
# Modules, below gtp_fast, and the tests that are to notice their mutants, below tests.
TESTS = {
    "algorithms/equations.py": ("algorithms/test_equations.py", "algorithms/test_gtp_variants.py", ORACLE),
    "algorithms/gtp.py": ("algorithms/test_gtp.py", "algorithms/test_gtp_variants.py", ORACLE, PHASES),
    "algorithms/optimizer.py": ("algorithms/test_optimizer.py", ORACLE),
    "training/guards.py": ("training/test_guards.py",),
    "data/download.py": ("data/test_download.py",),
    "files.py": ("test_files.py", "runs/test_directory.py"),
    "locks.py": ("test_locks.py", "test_files.py"),
    "runs/disk.py": ("runs/test_disk.py",),
    "runs/directory.py": ("runs/test_directory.py",),
    "runs/checkpoint.py": ("runs/test_checkpoint.py", "runs/test_disk.py"),
    "runs/resume.py": ("runs/test_resume.py", "runs/test_extend.py"),
    "evaluation/worker.py": ("evaluation/test_worker.py", "training/test_evaluations.py"),
    "training/evaluations.py": ("training/test_train.py", "training/test_lost_work.py", "training/test_evaluations.py"),
    "training/signals.py": ("training/test_signals.py",),
    "training/train.py": ("training/test_train.py", "training/test_evaluations.py", "runs/test_resume.py"),
}
COPIED = ("gtp_fast", "kernels", "configs", "tests", "tools", "pyproject.toml", "constraints.txt")
WARM = ("torch", "numpy", "gymnasium", "h5py", "hypothesis", "pytest", "safetensors.torch", "yaml")
FLAGS = ("-x", "-q", "-m", "not gpu and not crash and not long", "-p", "no:cacheprovider")
MARK = "GTP_FAST_MUTANT"  # in the environment of every process that a mutant's tests start
TIMES = 4.0  # as long as its tests took before it was made, and some seconds more: then a mutant hangs

SWAPS: dict[type, type] = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
SWAPS |= {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.And: ast.Or}
SWAPS |= {new: old for old, new in SWAPS.items()} | {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
OTHER_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
DELETED = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)
# Not looked into: types, what a decorator is told, and arguments that only check or name.
LEFT_ALONE = {"annotation", "returns", "decorator_list", "type_params"}
KEYWORDS = ("strict", "daemon", "name", "thread_name_prefix")


@dataclass(frozen=True)
class Mutant:
    """A changed module: where, what stood there, what stands there now, and the module's whole text."""

    module: str
    line: int
    before: str
    after: str
    text: str = field(repr=False)

    def __str__(self) -> str:
        return f"gtp_fast/{self.module}:{self.line}: {self.before}  ->  {self.after}"


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Yield each mutant of a module once."""
    tree, lines = ast.parse(source), source.splitlines()
    seen = {ast.unparse(tree)}
    for parent, name, place, node in _sites(tree):
        for changed in _changes(node):
            _put(parent, name, place, changed)
            text = ast.unparse(ast.fix_missing_locations(tree))
            _put(parent, name, place, node)
            if text not in seen:
                seen.add(text)
                line = getattr(node, "lineno", 0) or node.target.lineno  # type: ignore[attr-defined] (a comprehension)
                where = f"  in: {lines[line - 1].strip()}" if isinstance(node, ast.Constant) else ""
                yield Mutant(module, line, _short(node), _short(changed) + where, text)


def _sites(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield every node that decides something, with its parent and its place there."""
    for name, value in ast.iter_fields(parent):
        for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and name not in LEFT_ALONE and not _says_only(node):
                yield parent, name, place, node
                yield from _sites(node)


def _says_only(node: ast.AST) -> bool:
    """Say whether a node is prose, or tells other tools something: a docstring, a message, `__all__`."""
    match node:
        case ast.JoinedStr() | ast.Expr(ast.Constant()) | ast.AnnAssign(value=None):
            return True
        case ast.Constant(str(text)):
            return not text or any(c.isspace() for c in text)
        case ast.keyword(arg):
            return arg in KEYWORDS
        case ast.Assign([ast.Name("__all__")]) | ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.Call(ast.Name("TypeVar")) | ast.Call(ast.Attribute(attr="getLogger")):
            return True
    return False


def _put(parent: ast.AST, name: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[place] = node


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of a node."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                if type(op) in SWAPS:
                    yield _with(node, ops=[*ops[:i], SWAPS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield _with(node, op=SWAPS[type(op)]())
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(value):
            yield from _other_values(value)
        case ast.Call(ast.Name("sorted" | "reversed"), [first, *_], keywords):
            yield ast.Call(ast.Name("list"), [first], [])
            if keywords:
                yield _with(node, keywords=[])
        case ast.Call(ast.Name(name)) if name in OTHER_CALLS:
            yield _with(node, func=ast.Name(OTHER_CALLS[name]))
        case ast.Call(ast.Name("suppress"), [_, *_]):
            yield _with(node, args=[])
        case ast.If(test) | ast.While(test) | ast.IfExp(test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=[_, *_] as ifs):
            yield _with(node, ifs=[ast.UnaryOp(ast.Not(), ifs[0]), *ifs[1:]])
        case ast.Return(value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.ExceptHandler():
            yield _with(node, body=[ast.Pass()])
        case ast.Expr(ast.Call()) | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
    if isinstance(node, DELETED):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
        yield _with(node, op=SWAPS[type(node.op)]())


def _other_values(value: object) -> Iterator[ast.Constant]:
    match value:
        case bool():
            yield ast.Constant(not value)
        case int():
            yield ast.Constant(value + 1)
        case float():
            yield ast.Constant(2 * value or 1.0)
        case str():
            yield ast.Constant(value + "_")


def _with(node: ast.AST, **changed: Any) -> ast.AST:
    found = copy.copy(node)
    for name, value in changed.items():
        setattr(found, name, value)
    return found


def _short(node: ast.AST) -> str:
    head = isinstance(node, (ast.If, ast.While))
    text = ast.unparse(node).splitlines()[0] if head else " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else text[:97] + "..."


class Ordered:
    """A plugin of pytest: the quickest tests first, by what they took before; it notes what each took and what failed.

    A file's tests stay together, since they share fixtures.
    """

    def __init__(self, before: dict[str, float], to: Path, place: Path) -> None:
        self.before, self.to, self.place = before, to, place
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # its end comes after the order of the project's own plugin
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        yield
        of_file: dict[str, float] = {}
        for name, seconds in self.before.items():
            of_file[_file(name)] = of_file.get(_file(name), 0.0) + seconds
        items.sort(key=lambda item: (of_file.get(_file(item.nodeid), 0.0), self.before.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} at its import")

    def pytest_sessionfinish(self) -> None:
        found = getattr(sys.modules.get("gtp_fast"), "__file__", None) or str(self.place)
        assert found.startswith(str(self.place)), f"the tests imported {found}"
        self.to.write_text(json.dumps({"seconds": self.seconds, "failed": self.failed}))


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


@dataclass
class Trial:
    """Tests that run in a process forked from this one, on a copy of the checkout in a folder of its own."""

    folder: Path
    clean: Path
    module: str
    mutant: Mutant | None
    before: dict[str, float]
    limit_s: float
    pid: int = 0
    began: float = 0.0

    def start(self) -> Trial:
        place = self.folder / "copy"
        shutil.copytree(self.clean, place)
        (self.folder / "tmp").mkdir()
        if self.mutant is not None:
            (place / "gtp_fast" / self.mutant.module).write_text(self.mutant.text)
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(place)
        return self

    def _run(self, place: Path) -> None:
        """Run the tests, in the child."""
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            out = os.open(self.folder / "said", os.O_CREAT | os.O_WRONLY)
            for descriptor, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, out)):
                os.dup2(file, descriptor)
            os.chdir(place)
            paths = [str(place), str(place / "kernels")]
            os.environ |= {MARK: str(self.folder), "PYTHONPATH": os.pathsep.join(paths)}
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder / "tmp")
            sys.path[:] = paths + sys.path
            tests = [f"tests/{name}" for name in TESTS[self.module]]
            plugin = Ordered(self.before, self.folder / "told.json", place)
            code = int(pytest.main([*FLAGS, "--rootdir", str(place), *tests], plugins=[plugin]))
            sys.stdout.flush()
        finally:
            os._exit(code)

    def outcome(self) -> tuple[str, dict[str, Any]] | None:
        """Return how the tests ended, and what the plugin told; None while they run and may."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = time.monotonic() - self.began > self.limit_s
        if not pid and not late:
            return None
        end_processes(self.pid, str(self.folder))
        if not pid:
            os.waitpid(self.pid, 0)
            return "hung", {}
        told = self.folder / "told.json"
        known = json.loads(told.read_text()) if told.exists() else {}
        code = os.waitstatus_to_exitcode(status)
        if code in (4, 5, 70) or (code == 0 and not known):
            raise SystemExit(f"the tests of {self.module} did not run:\n{(self.folder / 'said').read_text()[-3000:]}")
        return "passed" if code == 0 else "failed", known


def end_processes(group: int, mark: str) -> None:
    """End the processes of a trial: its group, and what its tests started in sessions of their own."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def run(root: Path, chosen: list[Mutant], jobs: int, spare_s: float) -> tuple[dict[Mutant, str], list[str]]:
    """Run the tests of every mutant; return how each ended, and the modules whose tests fail without a mutant."""
    ends: dict[Mutant, str] = {}
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        clean = _clean_copy(root, Path(name))
        for module in dict.fromkeys(mutant.module for mutant in chosen):
            began = time.monotonic()
            how, told = _wait([Trial(_new(name), clean, module, None, {}, 1_800.0).start()], 0.05)[1]
            took = time.monotonic() - began
            if how != "passed":
                say(f"gtp_fast/{module}: its tests fail without a mutant ({told.get('failed')}): it is left out")
                broken.append(module)
                continue
            say(f"gtp_fast/{module}: {len(told['seconds'])} tests pass without a mutant in {took:.1f} s")
            waiting = [mutant for mutant in chosen if mutant.module == module]
            running: list[Trial] = []
            while waiting or running:
                while waiting and len(running) < jobs:
                    limit_s = TIMES * took + spare_s
                    running.append(Trial(_new(name), clean, module, waiting.pop(0), told["seconds"], limit_s).start())
                trial, (how, found) = _wait(running, 0.05)
                running.remove(trial)
                shutil.rmtree(trial.folder, ignore_errors=True)
                assert trial.mutant is not None
                by = f"  by {found['failed'][0]}" if found.get("failed") else ""
                word = {"passed": "SURVIVED", "hung": "noticed (it hung)", "failed": "noticed"}[how]
                ends[trial.mutant] = how
                say(f"{word}  {trial.mutant}{by}  {time.monotonic() - trial.began:.1f} s")
    return ends, broken


def _clean_copy(root: Path, folder: Path) -> Path:
    """Copy what tests need, compiled: every mutant's copy is made from it."""
    clean = folder / "clean"
    clean.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, clean / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy2(root / name, clean / name)
    compileall.compile_dir(clean, quiet=2)
    return clean


def _new(folder: str) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _wait(trials: list[Trial], seconds: float) -> tuple[Trial, tuple[str, dict[str, Any]]]:
    """Return the first trial that ends, and how; where this process is stopped, end them all."""
    try:
        while True:
            for trial in trials:
                if (ended := trial.outcome()) is not None:
                    return trial, ended
            time.sleep(seconds)
    except BaseException:
        for trial in trials:
            end_processes(trial.pid, str(trial.folder))
        raise


def table(ends: dict[Mutant, str], broken: list[str]) -> list[str]:
    """Return the lines of the result: a table by module, and every survivor."""
    lines = ["| module | made | noticed | of them hung | survived |", "|---|---|---|---|---|"]
    for module in [*dict.fromkeys(mutant.module for mutant in ends), "all"]:
        count = Counter(how for mutant, how in ends.items() if module in ("all", mutant.module))
        noticed = count["failed"] + count["hung"]
        lines.append(f"| `{module}` | {sum(count.values())} | {noticed} | {count['hung']} | {count['passed']} |")
    lines += ["", *(f"survived: {mutant}" for mutant, how in ends.items() if how == "passed")]
    return lines + [f"left out, as its tests fail: {module}" for module in broken]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(typed: list[str]) -> int:
    """Return 0 where every mutant was noticed, 1 where one survived or tests fail without a mutant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", action="append", choices=list(TESTS), help="draw from this module; repeatable")
    parser.add_argument("--count", type=int, default=200, help="how many mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="mutants at once")
    parser.add_argument("--spare", type=float, default=30.0, help="seconds beyond four times what its tests take")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout")
    args = parser.parse_args(typed)
    modules = [module for module in args.module or TESTS if (args.root / "gtp_fast" / module).exists()]
    made = [m for module in modules for m in mutants(module, (args.root / "gtp_fast" / module).read_text())]
    drawn = set(random.Random(args.seed).sample(range(len(made)), min(args.count, len(made))))
    chosen = [mutant for i, mutant in enumerate(made) if i in drawn]
    say(f"{len(chosen)} of {len(made)} mutants, seed {args.seed}")
    if args.list:
        say("\n".join(str(mutant) for mutant in chosen))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    _warm(args.root.resolve())
    ends, broken = run(args.root.resolve(), chosen, args.jobs, args.spare)
    say("\n" + "\n".join(table(ends, broken)))
    return int("passed" in ends.values() or bool(broken))


def _warm(root: Path) -> None:
    """Import what tests need and no mutant changes; forget where the checkout is."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "TRITON_INTERPRET": "1"}
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (root, root / "kernels", root / "tools")]
    for name in WARM:
        with suppress(ImportError):
            importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] in ("gtp_fast", "gtp_kernels")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
