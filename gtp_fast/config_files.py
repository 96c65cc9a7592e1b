"""Settings from files: presets of the algorithm, presets of each task, a file of one's own; merged below the flags.

Precedence: defaults < configs/presets/<preset>.yaml < configs/tasks/<task>.yaml < --config FILE < flags.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from gtp_fast import catalog
from gtp_fast.config import TrainConfig, flag, validate
from gtp_fast.errors import UsageError


def merge(flags: Mapping[str, Any], file: Path | None = None) -> TrainConfig:
    """Return the settings of a run from its explicit flags and an optional YAML file.

    Raises: UsageError for unknown names, wrong types, values out of range, with the nearest match.
    """
    check_names(flags, "the flags")
    own = read_yaml(file) if file else {}
    typed = own | dict(flags)
    spec = catalog.resolve(str(typed["env"])) if typed.get("env") else None
    task = read_yaml(_root() / "tasks" / f"{spec.task}.yaml") if spec and spec.task else {}
    preset_name = typed.get("preset", task.get("preset", TrainConfig.preset))
    _check_type("preset", preset_name, "--preset")
    preset = read_yaml(_root() / "presets" / f"{preset_name}.yaml")
    values = preset | task | typed | {"preset": preset_name}
    if values.get("bc"):
        values["eta"] = 0.0
    return validate(replace(TrainConfig(), **values))


def _root() -> Path:
    """Return the folder of presets: beside the package in a checkout, inside it where it was installed."""
    here = Path(__file__).parent
    checkout = here.parent / "configs"
    return checkout if (checkout / "presets").is_dir() else here / "configs"


def check_names(values: Mapping[str, Any], where: str) -> None:
    """Refuse names that are no setting, with the nearest match, and values of another type."""
    known = {field.name for field in fields(TrainConfig)}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "gtp-fast train --help lists all."
            raise UsageError(f"{where}: no setting is called {name!r}; {hint}")
        _check_type(name, value, where)


def _check_type(name: str, value: Any, where: str) -> None:
    hint = get_type_hints(TrainConfig)[name]
    if not _fits(value, hint):
        expected = (
            " | ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else getattr(hint, "__name__", hint)
        )
        near = difflib.get_close_matches(str(value), [str(a) for a in get_args(hint)], n=1, cutoff=0.4)
        more = f"; did you mean {near[0]}?" if near and get_origin(hint) is Literal else ""
        raise UsageError(f"{where}: {flag(name)} is {value!r}, expected {expected}{more}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is NoneType:
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; integers are taken where numbers are expected.

    Raises: UsageError naming file and line for what is not a mapping of known settings.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check --config") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a YAML file of settings: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, expected lines of the form 'name: value'")
    check_names(values, str(path))
    hints = get_type_hints(TrainConfig)
    return {name: float(value) if hints[name] is float else value for name, value in values.items()}


def dump_yaml(cfg: TrainConfig) -> str:
    """Return all settings as YAML, in the order of the dataclass; `read_yaml` gives them back."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False)  # ASCII: every other character is escaped
