"""The rooms of DESIGN kept apart: imports point up-river, and each outside thing has one owner."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = sorted([*ROOT.glob("gtp_fast/**/*.py"), *ROOT.glob("kernels/gtp_kernels/*.py")])

# Each room may import from itself and from the rooms named before it. Errors and settings are everybody's.
RIVER = (
    ("base", ("version", "gtp_fast", "errors", "files", "variants", "config", "rundir", "field_help", "events")),
    (
        "data",
        (
            "config_files",
            "data_spec",
            "published",
            "maze_maps",
            "frame_data",
            "d4rl_names",
            "minari_names",
            "ogbench_names",
            "catalog",
            "published_at",
            "download",
            "data_rules",
            "data_doubts",
            "episodes",
            "spaces",
            "minari_episodes",
            "minari_data",
            "ogbench_tasks",
            "ogbench_data",
            "embedded",
            "shards",
            "dataset",
            "data_check",
        ),
    ),
    (
        "learn",
        (
            *("rng", "obs_scale", "encoder", "networks", "policy_config", "trajectory", "losses", "optimizer"),
            *("profiling", "buffer", "stream", "frames", "state"),
        ),
    ),
    (
        "algorithms",
        (
            "algorithms",
            "algorithms.pieces",
            "algorithms.dql",
            "algorithms.gtp_losses",
            "algorithms.gtp",
            "algorithms.cac",
            "algorithms.fql",
            "algorithms.iql",
            "algorithms.td3bc",
            "algorithms.binding",
            "algorithms.fused",
            "graph",
            "device",
            "footprint",
            "placement",
        ),
    ),
    ("keep", ("results", "disk", "memory", "saving", "checkpoint", "guards", "metrics", "signals", "paper", "resume")),
    (
        "act",
        (
            *("noise", "sampler", "act_cpu", "act_cuda", "policy", "load", "multigoal", "antmaze", "pointmaze"),
            *("environments", "rollout", "evaluate", "evaluator", "best"),
        ),
    ),
    ("run", ("loop", "profile_run", "eval_run")),
    ("ask", ("aggregate", "runs", "report", "figures", "export", "latency", "doctor", "screen", "trial", "trials")),
    (
        "reproduce",
        (
            *("reproduce", "reproduce.items", "reproduce.data", "reproduce.scores", "reproduce.goals"),
            *("reproduce.pictures", "reproduce.bench", "reproduce.page", "reproduce.run"),
        ),
    ),
    ("sweep", ("sweep", "sweep.asked", "sweep.plan", "sweep.table", "sweep.on_ray", "sweep.run")),
    ("cli", ("flags", "cli_data", "cli_sweep", "cli", "__main__")),
)
OWNERS = {
    "h5py": {"dataset", "minari_episodes"},
    "minari": {"minari_data", "minari_episodes"},
    "gymnasium": {
        *("environments", "multigoal", "antmaze", "pointmaze", "minari_data", "minari_episodes"),
        *("ogbench_tasks", "spaces"),
    },
    "ogbench": {"ogbench_tasks"},
    "nvtx": {"profiling"},
    "wandb": {"metrics"},
    "tensorboard": {"metrics"},
    "torch.utils.tensorboard": {"metrics"},
    "torch.cuda.graphs": {"graph"},
    "mujoco": {"antmaze"},
    "ray": {"sweep.on_ray"},
    "matplotlib": {"figures", "reproduce.pictures"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "triton": set(),  # gtp_kernels alone, which is not among these rooms
    "yaml": {"config_files", "reproduce.run"},
    "tqdm": {"screen"},
    "urllib": {"download"},
    "fcntl": {"files", "download"},
}
CALLS = {  # dotted call -> rooms that may make it
    "os.replace": {"files", "rundir"},
    "os.rename": set(),
    "os.fsync": {"files"},
    "torch.cuda.CUDAGraph": {"graph"},
    "torch.cuda.graph": {"graph"},
    "print": {"cli", "cli_data", "cli_sweep"},
    "sys.exit": {"cli", "cli_sweep"},
    "eval": set(),
    "exec": set(),
    "torch.load": set(),
    "torch.save": set(),
    "__import__": set(),
    "importlib.import_module": set(),
    "shutil.move": set(),
    "os.renames": set(),
    "os.link": set(),
}
PATH_RENAMES = {"rename", "replace"}  # with one argument these are Path's; str.replace takes two
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


def room(module: str) -> int:
    ranks = [rank for rank, (_, modules) in enumerate(RIVER) if module in modules]
    assert ranks, f"{module} belongs to no room; add it to RIVER"
    return ranks[0]


def up_river_faults(source: str, module: str) -> list[str]:
    """Return imports of gtp_fast that point down-river from `module`."""
    known = {name for _, modules in RIVER for name in modules}
    faults = []
    for name, typed in imports(ast.parse(source)):
        if not name.startswith("gtp_fast") or typed:
            continue
        target = name.removeprefix("gtp_fast.").removeprefix("gtp_fast") or "gtp_fast"
        while target not in known and "." in target:
            target = target.rsplit(".", 1)[0]
        if target in known and room(target) > room(module):
            faults.append(f"{module} imports {target}")
    return faults


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


@pytest.mark.parametrize("path", [p for p in PRODUCT if "gtp_kernels" not in p.parts], ids=module_of)
def test_imports_point_up_river_and_outside_things_have_one_owner(path):
    source, module = path.read_text(), module_of(path)
    assert module in {"gtp_fast", *(name for _, names in RIVER for name in names)}, "add the new file to RIVER"
    # The package's own __init__ offers the API lazily: it may name what lies below, inside functions.
    assert module == "gtp_fast" or up_river_faults(source, module) == []
    assert owner_faults(source, module) == []


@pytest.mark.parametrize("path", [p for p in PRODUCT if "gtp_kernels" in p.parts], ids=lambda p: p.stem)
def test_kernels_know_nothing_of_the_product(path):
    assert not [name for name, _ in imports(ast.parse(path.read_text())) if name.startswith("gtp_fast")]


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from gtp_fast.loop import train", "losses"),
        ("from gtp_fast import cli", "dataset"),
        ("import gtp_fast.policy", "networks"),
        ("from . import cli", "dataset"),
        ("from .loop import train", "losses"),
    ],
)
def test_an_import_down_river_is_seen(source, module):
    assert up_river_faults(source, module)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import h5py",
        "import os\nos.replace(a, b)",
        "from os import replace",
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
    assert owner_faults(source, "losses")


@pytest.mark.parametrize("source", ["text.replace('a', 'b')", "from dataclasses import replace\nreplace(a, b=1)"])
def test_a_replaced_letter_or_field_is_no_rename(source):
    assert owner_faults(source, "losses") == []


@pytest.mark.parametrize("module", ["cli", "config", "catalog", "errors"])
def test_a_module_that_only_names_things_loads_no_torch(module):
    code = f"import sys, gtp_fast.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_asking_for_help_loads_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom gtp_fast.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(','.join(m for m in ('torch', 'numpy', 'gymnasium', 'yaml') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--sampling-steps" in done.stdout and done.stderr == ""


def test_files_stay_short_enough_to_hold_one_idea():
    limits = {"gtp_fast": 450, "kernels": 450, "tests": 450}
    names = [p.relative_to(ROOT).as_posix() for p in [*PRODUCT, *ROOT.glob("tests/*.py")]]
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in names}
    assert {n: c for n, c in lines.items() if c > limits[n.split("/")[0]]} == {}


def test_functions_fit_a_screen():
    # Of a kernel the body counts: its argument list is as long as the launch needs.
    long = [
        f"{path.name}:{node.name}"
        for path in PRODUCT
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
