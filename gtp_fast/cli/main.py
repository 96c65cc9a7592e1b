"""The commands: their flags, and what they print. The flags of train are made from the fields of `TrainConfig`.

Each command imports what it needs when it runs, so that `--help` loads neither torch nor numpy. Only typed flags of
train are passed on: defaults < presets < file < flags.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from gtp_fast.cli.sweep import add_allow_import, add_sweep, run_sweep
from gtp_fast.config import TrainConfig, flag, setting_types
from gtp_fast.errors import GtpError, UsageError
from gtp_fast.experiments.reproduce.items import NAMES
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.streams import Lasting, lasting_streams, open_standard_streams, settle_streams
from gtp_fast.training.signals import InterruptedRunError, end_process
from gtp_fast.version import __version__

if TYPE_CHECKING:
    from gtp_fast.evaluation.evaluate import Evaluation

TRAINS = ("train", "sweep", "reproduce")  # commands that go on when nothing can be printed any more
Config = TypeVar("Config")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add one flag for every field of `TrainConfig`."""
    hints = setting_types()
    for field in fields(TrainConfig):
        hint, text = hints[field.name], field.metadata["help"]
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
    add_allow_import(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--episodes", type=int, help="(default: as trained)")
    parser.add_argument(
        "--eval-max-steps", type=int, help="end an episode after so many; 0: its own limit (as trained)"
    )
    parser.add_argument("--sampling-steps", type=int, help="K (default: as trained)")
    parser.add_argument("--candidates", type=int, help="actions drawn for each observation (default: as trained)")
    parser.add_argument("--select", choices=["none", "softmax", "argmax"], help="how Q picks one")
    parser.add_argument("--seed", type=int, help="one member of the run (default: all)")
    parser.add_argument("--env-seed", type=int, default=1, help="seed of the environments (default: 1)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core (default: 0)")
    parser.add_argument("--best", action="store_true", help="the best policy by score, not the last checkpoint")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--video", type=Path, metavar="FILE.gif", help="also record one episode")
    add_allow_import(parser)
    _add_json(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=Path, metavar="RUN", help="a run directory or a checkpoint")


def _add_json(parser: argparse.ArgumentParser, what: str = "") -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what}one JSON object")


def _add_latency(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--seed", type=int, help="one member of the run (default: the first)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seconds", type=float, default=0.2, help="spent on each point (default: 0.2)")
    parser.add_argument("--out", type=Path, help="where to write (default: report/ of the run)")
    _add_json(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="pt2: torch.export (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: policy.onnx or policy.pt2 in RUN)")
    parser.add_argument("--seed", type=int, help="one member of the run (default: the first)")
    parser.add_argument("--sampling-steps", type=int, help="K, fixed in the file (default: as trained)")
    parser.add_argument("--candidates", type=int, help="fixed in the file (default: as trained)")
    parser.add_argument("--select", choices=["none", "softmax", "argmax"], help="how Q picks one")
    parser.add_argument("--best", action="store_true", help="the best policy by score, not the last checkpoint")
    _add_json(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "info", "download", "check"])
    parser.add_argument("name", nargs="?", help="a data set's name, or a file or directory")
    parser.add_argument("--env", help="info, check: the environment that the file is for")
    parser.add_argument("--env-kwargs", metavar="JSON", help="info, check: arguments of that environment")
    parser.add_argument("--action-units", choices=["scaled", "environment"], help="info, check: as of train")
    _add_json(parser)


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
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
    add_allow_import(parser)
    _add_json(parser, "the summary as ")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name the nearest match, and which leaves exiting to `main`."""

    def error(self, message: str) -> NoReturn:
        typed = message.split("'")[1] if "invalid choice: '" in message else ""
        choices = [choice for action in self._actions for choice in (action.choices or ())]
        near = difflib.get_close_matches(typed, map(str, choices), n=1, cutoff=0.4) if typed else []
        raise UsageError(message + (f"; did you mean {near[0]}?" if near else ""))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    A command that only prints ends with 141 where nobody reads. One that trains goes on, and its own code stays.
    """
    open_standard_streams()
    try:
        parser = _parser()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            raise UsageError(_unknown(arguments.parser, unknown[0]))
        with lasting_streams() if arguments.command in TRAINS else nullcontext():
            _run(arguments, argv is None)
        if sys.stdout is not None:
            sys.stdout.flush()
    except GtpError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    finally:
        settle_streams()


def _run(arguments: argparse.Namespace, own_process: bool) -> None:
    """Run the command. After a signal a process of its own ends at once: torch.compile would hold its end up."""
    try:
        arguments.run(arguments)
    except InterruptedRunError as error:
        if not own_process:
            raise
        _complain(error)
        settle_streams()
        end_process(error.exit_code)


def _complain(error: GtpError) -> None:
    Lasting(sys.stderr).write(f"error: {error}\n")


def _unknown(parser: argparse.ArgumentParser, typed: str) -> str:
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(typed.split("=")[0], known, n=1)
    return f"unknown argument {typed}; " + (f"did you mean {near[0]}?" if near else f"see {parser.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gtp-fast", description="Train Generative Trajectory Policies for offline RL, fast.")
    parser.add_argument("--version", action="version", version=f"gtp-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        return sub

    train = command("train", _train, "train, evaluate and save a policy; run again to continue")
    add_settings(train)
    train.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML, below the flags")
    train.add_argument("--print-config", action="store_true", help="print the merged settings and stop")
    _add_json(train, "the result as ")
    _add_eval(command("eval", _eval, "roll out a saved policy: raw and normalised score of each seed"))
    _add_latency(command("latency", _latency, "time an action against sampling steps, batch and candidates"))
    report = command("report", _report, "draw the learning curve, write the table and the model card")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, help="where to write (default: report/ of the run; of several: ./report)")
    _add_json(report, "the summary as ")
    _add_reproduce(command("reproduce", _reproduce, "run one table or figure of the paper: ours beside the paper's"))
    add_sweep(command("sweep", run_sweep, "train a grid of data sets, settings and seeds; run again to continue"))
    _add_export(command("export", _export, "write a policy as one file that needs nothing of gtp-fast"))
    _add_data(command("data", _data, "list, describe, fetch or check data sets"))
    _add_json(command("doctor", _doctor, "say what was found here and which backend will be used"))
    profile = command("profile", _profile, "time the phases of a train step and write a Chrome trace")
    add_settings(profile)
    profile.add_argument("--out", type=Path, default=Path("profile"), help="folder of the trace")
    _add_json(profile)
    return parser


def _config(kind: type[Config], arguments: argparse.Namespace) -> Config:
    """Return a command's configuration: its fields have the names of the flags."""
    return kind(**{name: getattr(arguments, name) for name in inspect.signature(kind).parameters})


def _settings(arguments: argparse.Namespace) -> TrainConfig:
    from gtp_fast.data.catalog import run_settings

    names = {field.name for field in fields(TrainConfig)}
    typed = {name: value for name, value in vars(arguments).items() if name in names}
    return run_settings(typed, getattr(arguments, "config", None), arguments.allow_import)


def _train(arguments: argparse.Namespace) -> None:
    cfg = _settings(arguments)
    if arguments.print_config:
        from gtp_fast.presets import dump_yaml

        print(json.dumps(asdict(cfg)) if arguments.json else dump_yaml(cfg).rstrip())
        return
    from gtp_fast.cli.screen import Screen
    from gtp_fast.training.train import train

    with Screen(sys.stderr, cfg.steps) as screen:
        result = train(cfg, screen.show, screen.alive_seconds)
    report = Path(result.run_dir) / "report"
    if not (result.finished_before and (report / "README.md").exists()):
        _draw(report)
    if not arguments.json:
        screen.summarise(result)
        return
    print(json.dumps(asdict(result)), flush=True)
    lost = getattr(sys.stdout, "lost", None)
    if lost is not None:
        print(f"warning: the result could not be printed ({lost}); {result.run_dir} holds it", file=sys.stderr)


def _draw(report: Path) -> None:
    """Draw the report of a run that has ended: nothing that fails here takes the run's result away."""
    from gtp_fast.experiments.report import draw_report

    try:
        draw_report([report.parent], RunDir(report.parent).report)
    except (GtpError, OSError) as error:
        print(f"warning: the report is not drawn: {error}; `gtp-fast report {report.parent}` draws it", file=sys.stderr)


def _eval(arguments: argparse.Namespace) -> None:
    from gtp_fast.evaluation.evaluate import EvalConfig, eval_run

    found = eval_run(arguments.run_path, _config(EvalConfig, arguments))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"run": str(arguments.run_path), **found.to_json()}))
        return
    _show_evaluation(found)
    if arguments.video is not None:
        print(f"wrote {arguments.video}")


def _show_evaluation(found: Evaluation) -> None:
    result = found.result
    print(f"policy {found.checkpoint}, step {', '.join(f'{step:,}' for step in dict.fromkeys(found.steps))}")
    how = f"K = {result.sampling_steps}, candidates {result.candidates} ({result.select})"
    episodes = result.returns_SE.shape[1]
    print(f"{result.env_id}, {episodes:,} episode{'s' * (episodes != 1)}, {how}")
    for i, seed in enumerate(result.seeds):
        row = result.returns_SE[i]
        score = "" if result.scores_SE is None else f"   score {result.scores_SE[i].mean():.1f}"
        success = "" if result.success_SE is None else f"   success {100 * result.success_SE[i].mean():.0f} %"
        print(f"  seed {seed}: return {row.mean():.1f} (std {row.std():.1f}){score}{success}")


def _latency(arguments: argparse.Namespace) -> None:
    from gtp_fast.experiments import latency

    found = latency.latency_run(arguments.run_path, _config(latency.LatencyConfig, arguments))
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{latency.table(found)}\nwrote {found['picture']} and latency.json beside it")


def _export(arguments: argparse.Namespace) -> None:
    from gtp_fast.policy.export import ExportConfig, export_run

    found = export_run(arguments.run_path, _config(ExportConfig, arguments))
    if not arguments.json:  # the policy's description has two numbers for each of an observation; the file holds it
        candidates = found.pop("policy")["candidates"]
        rows = "B" if candidates == 1 else f"B * {candidates}"
        found["inputs"] = [
            f"{name} ({', '.join(map(str, ('B' if name == 'obs' else rows, *shape)))})"
            for name, shape in found["inputs"].items()
        ]
    _show(found, arguments.json)


def _report(arguments: argparse.Namespace) -> None:
    from gtp_fast.experiments.report import draw_report

    runs: list[Path] = arguments.runs
    out = arguments.out or (RunDir(runs[0]).report if len(runs) == 1 else Path("report"))
    draw_report(runs, out)
    if arguments.json:
        print((out / "summary.json").read_text(), end="")
    else:
        print(f"wrote {out / 'README.md'}, {out / 'curve.png'} and {out / 'summary.json'}")


def _reproduce(arguments: argparse.Namespace) -> None:
    from gtp_fast.cli.screen import download_bar
    from gtp_fast.experiments.reproduce.page import body
    from gtp_fast.experiments.reproduce.run import ReproduceConfig, reproduce

    asked = _config(ReproduceConfig, arguments)
    with download_bar(sys.stderr) as progress:
        found = reproduce(asked, lambda line: print(line, file=sys.stderr, flush=True), progress)
    print(json.dumps(found) if arguments.json else f"{body(found)}\nwrote {found['report']}/README.md")
    if found["exit_code"]:
        sys.exit(found["exit_code"])


def _data(arguments: argparse.Namespace) -> None:
    from gtp_fast.cli.data import data_command

    described = data_command(arguments)
    if described is not None:
        _show(described, arguments.json)


def _doctor(arguments: argparse.Namespace) -> None:
    from gtp_fast.cli.doctor import examine

    _show(examine(), arguments.json)


def _profile(arguments: argparse.Namespace) -> None:
    from gtp_fast.training.profile import profile_run

    _show(profile_run(_settings(arguments), arguments.out), arguments.json)


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 0.1 else f"{value:.2g}"
    if isinstance(value, list):
        return ", ".join(f"{one:.6g}" if isinstance(one, float) else str(one) for one in value) or "none"
    return f"{value:,}" if type(value) is int else "-" if value is None else str(value)
