"""Settings from YAML files: presets of GTP, of each task and of each other algorithm, and the user's own file.

In: flags, a file and the name of a task. Out: the `TrainConfig` of a run. Later sources override earlier: defaults,
configs/presets/<preset>.yaml, configs/tasks/<task>.yaml, configs/algorithms/<algo>.yaml, its line for the task,
--config FILE, flags.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from numbers import Integral, Real
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

from gtp_fast.config import TrainConfig, canonical_arguments, flag, setting_types, shown, validate
from gtp_fast.errors import ForeignFileError, UsageError
from gtp_fast.files import read_bytes

YAML_BYTES = 1 << 20  # the most of a file of settings
FLOW_TIMES = {"sigma_max": 1.0, "rho": 1.0}  # for --process flow: even steps from 0 to 1


def merge(typed: Mapping[str, Any], task: str | None) -> TrainConfig:
    """Return the settings of a run: the given settings override the presets.

    With `--resume PATH` the settings of that run replace the presets.
    Args: task is the data set's file stem in configs/tasks, or None.
    Raises: UsageError for values out of range and settings that exclude each other.
    """
    saved = _saved(typed.get("resume", TrainConfig.resume))
    return validate(replace(TrainConfig(), **_implied((saved or _presets(typed, task)) | dict(typed), typed)))


def _presets(typed: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """Return the settings of GTP's preset, overridden by the task's, overridden by those of another algorithm."""
    tasks = read_yaml(_root() / "tasks" / f"{task}.yaml") if task else {}
    preset = typed.get("preset", tasks.get("preset", TrainConfig.preset))
    algo = typed.get("algo", TrainConfig.algo)
    own = {} if algo == TrainConfig.algo else algorithm_settings(algo, task)
    process = FLOW_TIMES if typed.get("process") == "flow" else {}
    return read_yaml(_root() / "presets" / f"{preset}.yaml") | tasks | own | process | {"preset": preset}


def algorithm_settings(algo: str, task: str | None) -> dict[str, Any]:
    """Return the settings of an algorithm other than GTP, overridden by those of its line for the task.

    Raises: UsageError for an unknown setting, in the line of any task.
    """
    path = _root() / "algorithms" / f"{algo}.yaml"
    values, lines = read_mapping(path)
    tasks = {name: checked(row, f"{path}, {name}") for name, row in values.pop("tasks", {}).items()}
    return checked(values, str(path), lines) | tasks.get(task, {})


def _saved(resume: str) -> dict[str, Any]:
    """Return the settings of the run that `--resume PATH` names; empty if it names none."""
    file = None if resume in ("auto", "never") else settings_file(Path(resume))
    saved = read_yaml(file, follow=False) if file else {}
    return {name: value for name, value in saved.items() if name not in ("run_dir", "resume")}


def settings_file(path: Path) -> Path | None:
    """Return config.yaml of a run, given its directory or one of its checkpoints; None if there is none."""
    files = (folder / "config.yaml" for folder in (path, path.parent.parent))
    # Not Path.is_file, which raises on a name that is too long.
    return next((file for file in files if os.path.isfile(file)), None)


def _implied(values: dict[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with those that --bc and --candidates 1 imply, unless the user gave them."""
    if values.get("bc"):
        values = values | {"eta": 0.0} | ({} if "candidates" in typed else {"candidates": 1})
    if values.get("candidates", 1) == 1 and "select" not in typed:
        values = values | {"select": "none"}
    return values


def _root() -> Path:
    """Return the folder of presets: inside an installed package, beside the package in a checkout."""
    here = Path(__file__).parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def checked(values: Mapping[str, Any], where: str, lines: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return settings with each value in its canonical type, in which it is saved and hashed.

    Args: where names their source in errors; lines has the line of each name in it.
    Raises: UsageError for unknown names, with the nearest match, and for values of the wrong type.
    """
    hints = setting_types()
    for name, value in values.items():
        place = f"{where}:{lines[name]}" if lines and name in lines else where
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1) if isinstance(name, str) else []
            hint = f"did you mean {near[0]}?" if near else "gtp-fast train --help lists all."
            raise UsageError(f"{place}: no setting is called {shown(name)}; {hint}")
        if name != "env_kwargs":  # text or a mapping, checked below
            _check_type(name, value, hints[name], place)
    return {
        name: canonical_arguments(value) if name == "env_kwargs" else _plain(value, hints[name])
        for name, value in values.items()
    }


def setting(typed: object, value: Any, where: str) -> tuple[str, Any]:
    """Return name and value of one setting: the name may be written as a flag, the value becomes its canonical type.

    A value given as text is parsed to the setting's type.
    Raises: UsageError for an unknown name, with the nearest match, and for a value of the wrong type.
    """
    name: Any = typed.strip().lstrip("-").replace("-", "_") if isinstance(typed, str) else typed
    hint = setting_types().get(name)
    if isinstance(value, str) and hint in (bool, int, float):
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
    return name, checked({name: _number(value) if hint is float else value}, where)[name]


def _plain(value: Any, hint: Any) -> Any:
    """Return a value in the hint's own type: 5, 5.0 and numpy's 5 are the same setting, saved and hashed alike."""
    if isinstance(value, (bool, NoneType)):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # also for numpy's strings, which YAML cannot write
    if isinstance(value, PurePath):
        return str(value)
    if hint is int:
        return int(value)
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:  # an integer too large for float64: outside every range
        return math.inf


def _check_type(name: str, value: Any, hint: Any, where: str) -> None:
    if _fits(value, hint):
        return
    literals = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
    expected = " | ".join(literals) or getattr(hint, "__name__", hint)
    near = difflib.get_close_matches(value, literals, n=1, cutoff=0.4) if isinstance(value, str) else []
    more = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"{where}: {flag(name)} is {shown(value)}, expected {expected}{more}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    kinds = {NoneType: NoneType, bool: bool, str: (str, PurePath), int: Integral, float: Real}
    return isinstance(value, kinds[hint]) and isinstance(value, bool) == (hint is bool)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path, follow: bool = True) -> dict[str, Any]:
    """Read a YAML file of settings. A float may be written as an integer, or as 3e-4.

    Args: follow, also through a link; not of a file that lies in a run.
    Raises: UsageError naming file and line, when the file is not a mapping of known settings.
    """
    values, lines = read_mapping(path, follow)
    return checked(values, str(path), lines)


def read_mapping(path: Path, follow: bool = True) -> tuple[dict[str, Any], dict[str, int]]:
    """Read the names and values of a YAML file, and the line of each name, without checking them against settings."""
    try:
        loader = _Loader(read_bytes(path, YAML_BYTES, follow).decode())
        loader.name = str(path)
        node = loader.get_single_node()
        values = {} if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check --config") from None
    except ForeignFileError as error:
        if not follow:
            raise
        raise UsageError(f"{str(error).partition(';')[0]}; name a YAML file of settings") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a YAML file of settings") from None
    except Exception as error:  # PyYAML does not wrap its constructors' errors: !!bool x is a KeyError
        raise UsageError(f"{path} is not a YAML file of settings: {error or type(error).__name__}") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path} holds {type(values).__name__}, expected lines of the form 'name: value'")
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    hints = setting_types()
    numbers = {name: _number(value) for name, value in values.items() if hints.get(name) is float}
    return values | numbers, lines


def _number(value: Any) -> Any:
    """Return 3e-4 as a number, which YAML 1.1 reads as text because it has no dot; return any other value unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def dump_yaml(cfg: TrainConfig) -> str:
    """Return all settings as YAML, in the order of the dataclass; `read_yaml` reads it back."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False)  # in ASCII: other characters are escaped
