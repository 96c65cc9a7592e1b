"""The flags of the commands that have many; those of train are generated from the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from gtp_fast.config import TrainConfig, flag, setting_types
from gtp_fast.experiments.reproduce.items import NAMES
from gtp_fast.field_help import FIELD_HELP


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add one flag for every field of `TrainConfig`."""
    hints = setting_types()
    for field in fields(TrainConfig):
        hint, text = hints[field.name], FIELD_HELP[field.name]
        if field.default not in ("", None):
            text += f" (default: {field.default})"
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if hint is bool:
            parser.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, **options)
        elif get_origin(hint) is Literal:
            parser.add_argument(flag(field.name), choices=get_args(hint), **options)
        else:
            kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint
            parser.add_argument(flag(field.name), type=kind, metavar=kind.__name__.upper(), **options)


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Add what eval asks."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="a run directory or a checkpoint")
    parser.add_argument("--episodes", type=int, help="(default: as trained)")
    parser.add_argument("--sampling-steps", type=int, help="K (default: as trained)")
    parser.add_argument("--candidates", type=int, help="actions drawn for each observation (default: as trained)")
    parser.add_argument("--select", choices=["none", "softmax", "argmax"], help="how Q picks one")
    parser.add_argument("--seed", type=int, help="one member of the run (default: all)")
    parser.add_argument("--env-seed", type=int, default=1, help="seed of the environments (default: 1)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core (default: 0)")
    parser.add_argument("--best", action="store_true", help="the best policy by score, not the last checkpoint")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--video", type=Path, metavar="FILE.gif", help="also record one episode")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add what export asks."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="a run directory or a checkpoint")
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="pt2: torch.export (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: policy.onnx or policy.pt2 in RUN)")
    parser.add_argument("--seed", type=int, help="one member of the run (default: the first)")
    parser.add_argument("--sampling-steps", type=int, help="K, fixed in the file (default: as trained)")
    parser.add_argument("--candidates", type=int, help="fixed in the file (default: as trained)")
    parser.add_argument("--select", choices=["none", "softmax", "argmax"], help="how Q picks one")
    parser.add_argument("--best", action="store_true", help="the best policy by score, not the last checkpoint")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    """Add what reproduce asks."""
    parser.add_argument("item", choices=NAMES, metavar="ITEM", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--budget", choices=["small", "paper"], default="small", help="small: half an hour on two CPU cores (default)"
    )
    parser.add_argument("--seeds", type=int, help="(default: 2 at small, 5 at paper)")
    parser.add_argument("--env", help="one data set, or with --dataset the environment (default: the paper's tasks)")
    parser.add_argument("--dataset", type=Path, metavar="PATH", help="a file or Minari directory in their place")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="where runs and reports lie"
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core, on a GPU one)")
    parser.add_argument("--steps", type=int, help="train steps of every run, in place of the budget's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of train, for every run; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
