"""The packages kept in order: each imports only what stands before it, and each outside thing has one owner."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

OWN = sorted(ROOT.glob("gtp_fast/**/*.py"))
KERNELS = sorted(ROOT.glob("kernels/gtp_kernels/*.py"))

# Each package imports only what stands before it; files at the root are everybody's.
ORDER = ("root", "data", "algorithms", "runs", "policy", "evaluation", "training", "experiments", "cli")
OWNERS = {
    "h5py": {"data.hdf5", "data.minari", "data.nodes"},
    "minari": {"data.minari"},
    "gymnasium": {
        "data.gym_ids",
        "data.minari",
        "data.ogbench",
        "data.spaces",
        "evaluation.checked",
        "evaluation.environments",
        "evaluation.mazes",
        "evaluation.multigoal",
    },
    "ogbench": {"data.ogbench"},
    "nvtx": {"profiling"},
    "wandb": {"runs.metrics"},
    "tensorboard": {"runs.metrics"},
    "torch.utils.tensorboard": {"runs.metrics"},
    "torch.cuda.graphs": {"algorithms.backends"},
    "mujoco": {"evaluation.mazes"},
    "ray": {"experiments.sweep.ray"},
    "matplotlib": {"experiments.figures"},
    "onnx": {"policy.export"},
    "onnxruntime": {"policy.export"},
    "triton": set(),  # gtp_kernels alone, which is not among these packages
    "yaml": {"presets"},
    "tqdm": {"cli.screen"},
    "urllib": {"data.download"},
    "fcntl": {"locks"},
}
CALLS = {  # dotted call -> modules that may make it
    "os.replace": {"files", "runs.directory"},
    "os.fsync": {"files"},
    "os.link": {"files"},
    "torch.cuda.CUDAGraph": {"algorithms.backends"},
    "torch.cuda.graph": {"algorithms.backends"},
    "print": {"cli.main", "cli.data", "cli.sweep"},
    "sys.exit": {"cli.main", "cli.sweep"},
}
FILE_CALLS = ("os.rename", "os.renames", "shutil.move", "torch.load", "torch.save")
CALLS |= {name: set() for name in (*FILE_CALLS, "eval", "exec", "__import__", "importlib.import_module")}
PATH_RENAMES = {"rename", "replace"}  # with one argument these are Path's; str.replace takes two
# Where run directories are read and written, and how a file there may be opened without asking what it is. A module may
# do so with files that no run holds.
UNTRUSTED = ("runs", "policy", "evaluation", "training", "experiments")
OPENS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "touch", "load_file", "safe_open"}
TRUSTED_OPENS = {
    "runs.metrics": {"open(os.devnull)"},
    "runs.streams": {"os.open(os.devnull, os.O_WRONLY)", "os.open(os.devnull, os.O_RDWR)"},
    "training.memory": {"info.read_text()"},  # /proc/meminfo
    "training.signals": {"file.read_text()"},  # /proc/PID/task
    "experiments.paper": {"(files('gtp_fast') / 'experiments' / 'paper_tables.json').read_text()"},
}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "joblib"}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT / "gtp_fast").with_suffix("").parts)
    return "gtp_fast" if name == "__init__" else name.removesuffix(".__init__")


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """Return imported modules, and whether each import stands under `if TYPE_CHECKING`."""
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typed) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = "gtp_fast." * bool(node.level) + (f"{node.module}." if node.module else "")
            found += [(stem + alias.name, id(node) in typed) for alias in node.names]
    return found


def package(module: str) -> str:
    first, _, rest = module.partition(".")
    return first if rest or first in ORDER else "root"


def targets(source: str) -> set[str]:
    """Return the modules of gtp_fast that a source imports, type-only imports included."""
    known, found = {module_of(path) for path in OWN}, set()
    for name, _ in imports(ast.parse(source)):
        if name.startswith("gtp_fast."):
            target = name.removeprefix("gtp_fast.")
            while target not in known and "." in target:
                target = target.rsplit(".", 1)[0]
            found |= {target} & known
    return found


def order_faults(source: str, module: str) -> list[str]:
    """Return imports of packages that stand after the module's own."""
    rank = ORDER.index(package(module))
    return [f"{module} imports {name}" for name in targets(source) if ORDER.index(package(name)) > rank]


def owner_faults(source: str, module: str) -> list[str]:
    """Return imports and calls that belong to another module."""
    tree = ast.parse(source)
    faults = []
    for name, typed in imports(tree):
        owned = [thing for thing in OWNERS if f"{name}.".startswith(f"{thing}.") and module not in OWNERS[thing]]
        if name.split(".")[0] in FORBIDDEN_IMPORTS or (owned and not typed):
            faults.append(f"{module} imports {name}")
        if module not in CALLS.get(name, {module}):
            faults.append(f"{module} takes {name} out of its module")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            renames = isinstance(node.func, ast.Attribute) and node.func.attr in PATH_RENAMES and len(node.args) == 1
            if (called in CALLS and module not in CALLS[called]) or (renames and not node.keywords):
                faults.append(f"{module} calls {called}")
    return faults


def open_faults(source: str, module: str) -> list[str]:
    """Return calls that open a file otherwise than `files` does, in packages that read run directories."""
    faults = []
    for node in ast.walk(ast.parse(source)) if package(module) in UNTRUSTED else ():
        if not isinstance(node, ast.Call) or ast.unparse(node) in TRUSTED_OPENS.get(module, ()):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else None
        attribute = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if attribute in OPENS or name == "open":  # read_bytes(file) without a dot is that of `files`
            faults.append(f"{module} calls {ast.unparse(node)}")
    return faults


@pytest.mark.parametrize("path", OWN, ids=module_of)
def test_packages_import_what_stands_before_them_and_outside_things_have_one_owner(path):
    source, module = path.read_text(), module_of(path)
    # The package's own __init__ offers the API, and __main__ the command: they name what stands after them.
    assert module in ("gtp_fast", "__main__") or order_faults(source, module) == []
    assert owner_faults(source, module) == []
    assert open_faults(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "open(run.log)",
        "run.log.open('a')",
        "(path / 'LOCK').read_text()",
        "path.write_bytes(data)",
        "os.open(path, os.O_RDONLY)",
        "safetensors.torch.load_file(path)",
    ],
)
def test_a_file_of_a_run_that_is_opened_whatever_it_is_is_seen(source):
    assert open_faults(source, "runs.records")
    assert open_faults(source, "data.dataset") == []


def test_a_trusted_open_is_of_its_module_alone():
    assert open_faults("open(os.devnull)", "runs.metrics") == []
    assert open_faults("open(os.devnull)", "runs.records")


def test_no_imports_run_in_circles():
    edges = {module_of(path): targets(path.read_text()) - {module_of(path)} for path in OWN}
    TopologicalSorter(edges).prepare()  # raises CycleError
    with pytest.raises(CycleError) as found:
        TopologicalSorter(edges | {"errors": {"config"}}).prepare()
    assert {*found.value.args[1]} == {"errors", "config"}


def test_the_root_holds_what_is_everybodys_and_nothing_else():
    assert len(list(ROOT.glob("gtp_fast/*.py"))) <= 11
    assert {path.name for path in (ROOT / "gtp_fast").iterdir() if (path / "__init__.py").exists()} == {*ORDER[1:]}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_know_nothing_of_the_product(path):
    assert not [name for name, _ in imports(ast.parse(path.read_text())) if name.startswith("gtp_fast")]


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from gtp_fast.training.train import train", "algorithms.equations"),
        ("from gtp_fast.cli.main import main", "data.dataset"),
        ("import gtp_fast.policy.policy", "algorithms.networks"),
        ("if TYPE_CHECKING:\n    from gtp_fast.data.spec import DataSpec", "config"),
    ],
)
def test_an_import_of_what_stands_after_is_seen(source, module):
    assert order_faults(source, module)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import h5py",
        "import os\nos.replace(a, b)",
        "from os import replace",
        "os.link(a, b)",
        "Path(a).rename(b)",
        "part.replace(whole)",
        "from torch.utils.tensorboard import SummaryWriter",
        "print(1)",
        "torch.load(x)",
        "from torch import load",
        "eval(x)",
        "importlib.import_module('pickle')",
    ],
)
def test_a_thing_used_by_another_than_its_owner_is_seen(source):
    assert owner_faults(source, "algorithms.equations")


@pytest.mark.parametrize("source", ["text.replace('a', 'b')", "from dataclasses import replace\nreplace(a, b=1)"])
def test_a_replaced_letter_or_field_is_no_rename(source):
    assert owner_faults(source, "algorithms.equations") == []


@pytest.mark.parametrize("module", ["cli.main", "config", "data.catalog", "errors"])
def test_a_module_that_only_names_things_loads_no_torch(module):
    code = f"import sys, gtp_fast.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_asking_for_help_loads_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom gtp_fast.cli.main import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(','.join(m for m in ('torch', 'numpy', 'gymnasium', 'yaml') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--sampling-steps" in done.stdout and done.stderr == ""


def test_files_stay_short_enough_to_hold_one_idea():
    lines = {path: len(path.read_text().splitlines()) for path in (*OWN, *KERNELS, *ROOT.glob("tests/*.py"))}
    assert {path: count for path, count in lines.items() if count > 450} == {}


def test_functions_fit_a_screen():
    # Of a kernel the body counts: its argument list is as long as the launch needs.
    long = [
        f"{path.name}:{node.name}"
        for path in (*OWN, *KERNELS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
        if node.end_lineno - (node.body[1].lineno if node.name.startswith("gtp_") else node.lineno) >= 60
    ]
    assert long == []


def test_no_file_names_a_folder_of_one_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    kinds = (".py", ".md", ".toml", ".yaml", ".txt", ".cff", ".json", "Makefile", ".ci/run")
    names = [name for name in listed.split("\0") if name.endswith(kinds)]
    marks = [f"/{folder}/" for folder in ("work", "root", "farm")]
    assert [
        name for name in names if (ROOT / name).exists() and any(m in (ROOT / name).read_text() for m in marks)
    ] == []
