"""The settings of a run: one frozen dataclass, read by the command line, YAML files and Python alike.

Each field holds its default, its line of `--help` and, of a number, its range. Below it: what settings mean together.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_type_hints

from gtp_fast.errors import UsageError

_FINITE = 1e30  # float32 holds it
_LONGEST_JSON = 100_000  # characters of --env-kwargs: a large maze's map has 1,000


def _setting(
    default: Any, text: str, low: float | None = None, high: float | None = None, run_only: bool = False
) -> Any:
    """Describe a field: its default, its line of help, and the lowest and highest value of a number, both allowed.

    Args: run_only marks what decides where and how a run is watched, not what it computes: it may change in a resume.
    """
    limits = None if low is None or high is None else (low, high)
    return field(default=default, metadata={"help": text, "range": limits, "run_only": run_only})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Precedence: the defaults here < `configs/presets/<preset>.yaml` < `configs/tasks/<task>.yaml` < `--config FILE`
    < flags. Sigmas are noise levels, in the units of actions.
    """

    # What to train on.
    env: str = _setting("", "data set: hopper-demo-v0, halfcheetah-medium-v2, a Minari id ... (gtp-fast data list)")
    dataset: str | None = _setting(
        None,
        "D4RL-layout file, directory of them, OGBench file, Minari directory or id; --env then names the scorer",
        run_only=True,
    )
    env_kwargs: str | None = _setting(
        None,
        """arguments with which the environment is made, as JSON: '{"robot": "a"}'; for data of your own or Minari's""",
    )
    action_units: Literal["auto", "scaled", "environment"] = _setting(
        "auto",
        "of the file's actions: -1 and 1 stand for the environment's bounds, or its own; auto asks if unclear",
    )
    clip_actions: bool = _setting(False, "clip actions outside their bounds and say how many")
    normalise_obs: bool = _setting(
        False, "subtract the data's mean from observations and divide by their spread; saved with the policy"
    )
    frame_stack: int = _setting(1, "frames that make one observation, where observations are pictures", 1, 16)
    augment: float = _setting(0.5, "probability that a step shifts its pictures by up to 3 pixels", 0, 1)
    # What to train.
    algo: Literal["gtp", "dql", "cac", "fql", "iql", "td3bc"] = _setting("gtp", "algorithm")
    bc: bool = _setting(False, "behaviour cloning: no critic, every weight 1")
    preset: Literal["paper", "stable"] = _setting("stable", "settings of the algorithm that belong together")
    steps: int = _setting(2_000_000, "train steps in all; schedules stretch over them", 1, 10**12)
    batch_size: int = _setting(256, "transitions a step", 1, 10**7)
    seed: int = _setting(0, "first seed", 0, 2**63 - 1)
    seeds: int = _setting(1, "independent runs trained at once: seed, seed + 1, ...", 1, 4096)
    # Acting.
    sampling_steps: int = _setting(5, "K, steps from noise to action", 1, 1000)
    candidates: int = _setting(1, "actions drawn for each observation when evaluated; Q picks one", 1, 10_000)
    select: Literal["none", "softmax", "argmax"] = _setting("none", "how Q picks among candidates")
    # The machine.
    device: Literal["auto", "cpu", "cuda"] = _setting("auto", "where to train")
    backend: Literal["auto", "eager", "compiled", "fused"] = _setting("auto", "how the step runs")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = _setting(
        "auto", "of the operands of matrix products; auto: tf32 on a GPU, fp32 on the CPU"
    )
    graph: bool = _setting(True, "capture steps in CUDA graphs (GPU)", run_only=True)
    unroll: int = _setting(
        0, "train steps in one graph (GPU); 0: 100 of the fused step, else 20", 0, 10_000, run_only=True
    )
    buffer: Literal["auto", "device", "host"] = _setting(
        "auto",
        "where the data set lies; host: it is streamed to the device; auto: host where it does not fit",
        run_only=True,
    )
    threads: int = _setting(0, "CPU threads; 0 takes all cores", 0, 4096, run_only=True)
    # The run.
    run_dir: str | None = _setting(
        None, "the run's own directory; default runs/<env>/<algo>-s<seed>-<UTC>-<hash>", run_only=True
    )
    resume: str = _setting(
        "auto", "auto continues a run of the same settings or fewer steps; never; or a run's path", run_only=True
    )
    log_every: int = _setting(1_000, "steps between log lines", 1, 10**12, run_only=True)
    eval_every: int = _setting(50_000, "steps between evaluations; 0: never", 0, 10**12, run_only=True)
    eval_episodes: int = _setting(10, "episodes of an evaluation", 1, 10**6, run_only=True)
    eval_workers: int = _setting(
        0,
        "processes of an evaluation; 0: one beside training on a CPU, all cores but one on a GPU",
        0,
        4096,
        run_only=True,
    )
    eval_max_steps: int = _setting(
        0,
        "steps after which an episode of an evaluation ends; 0: the environment's own limit",
        0,
        10**12,
        run_only=True,
    )
    save_every: int = _setting(50_000, "steps between checkpoints; 0: only the last step", 0, 10**12, run_only=True)
    keep: int = _setting(3, "checkpoints kept", 1, 10**6, run_only=True)
    tensorboard: bool = _setting(False, "also log to TensorBoard (extra: track)", run_only=True)
    wandb: bool = _setting(False, "also log to Weights & Biases (extra: track)", run_only=True)
    profile: bool = _setting(False, "NVTX ranges around the phases of each step", run_only=True)
    # Networks and optimisation.
    hidden: int = _setting(256, "width of the networks", 1, 65_536)
    layers: int = _setting(3, "hidden layers (of fql; the others have 3)", 1, 16)
    lr: float = _setting(3e-4, "Adam's learning rate", 0, _FINITE)
    lr_schedule: Literal["constant", "cosine"] = _setting("constant", "constant, or a cosine to 0 at the last step")
    grad_norm: float = _setting(9.0, "largest gradient norm of each network; 0: no clipping", 0, _FINITE)
    gamma: float = _setting(0.99, "discount a step", 0, 1)
    tau: float = _setting(0.005, "rate of the critic's target", 0, 1)
    ema_decay: float = _setting(0.995, "decay of the actor's EMA", 0, 1)
    ema_every: int = _setting(5, "steps between EMA updates", 1, 10**12)
    ema_start: int = _setting(1_000, "first step of the EMA", 0, 10**12)
    max_q_backup: bool = _setting(False, "TD target from the best of 10 sampled actions")
    reward_scale: float = _setting(1.0, "rewards are trained as (r + shift) * scale", -_FINITE, _FINITE)
    reward_shift: float = _setting(0.0, "see --reward-scale", -_FINITE, _FINITE)
    # Time.
    sigma_min: float = _setting(0.002, "noise level that stands for time 0", 1e-12, 1e6)
    sigma_max: float = _setting(80.0, "largest noise level", 1e-12, 1e6)
    sigma_data: float = _setting(0.5, "scale of the actions", 1e-12, 1e6)
    rho: float = _setting(7.0, "curvature of the Karras grid", 0.02, 1e3)  # sigma^(1/rho) stays within float64
    s0: int = _setting(10, "grid steps at first", 1, 10**6)
    s1: int = _setting(1280, "grid steps at last", 1, 10**6)  # the device holds the grids of all stages
    steps_schedule: str = _setting("doubling", "grid steps over the run: doubling from s0 to s1, or fixed:N (Table 8)")
    times: Literal["grid", "lognormal"] = _setting(
        "grid", "how t is drawn from the grid: uniformly, or so that ln t is normal"
    )
    time_mean: float = _setting(-1.1, "mean of ln t", -100, 100)
    time_std: float = _setting(2.0, "standard deviation of ln t", 0.01, 100)  # below it a grid may hold no time at all
    process: Literal["edm", "flow"] = _setting("edm", "noising of actions: edm, a + t z; flow, (1 - t) a + t z")
    # Losses and guidance.
    actor_loss: Literal["gtp", "consistency", "denoiser", "solver", "linear-q", "shortcut", "meanflow"] = _setting(
        "gtp", "what the actor learns: the paper's loss, or one that it compares with"
    )
    lambda_flow: float = _setting(1.0, "weight of the instantaneous loss (Eq. 19)", 0, _FINITE)
    solver: Literal["heun", "euler"] = _setting("heun", "method of --actor-loss solver")
    solver_steps: int = _setting(3, "its grid steps from t to u, at most 3", 1, 3)
    lambda_q: float = _setting(0.01, "weight of Q in --actor-loss linear-q", 0, _FINITE)
    compare_at_zero: bool = _setting(
        False, "carry both sides of the trajectory loss to time 0 before they are compared"
    )
    weighting: Literal["paper", "stable"] = _setting("paper", "factors over t in the losses")
    eta: float = _setting(1.0, "strength of value guidance (Eq. 14); iql's inverse temperature", 0, _FINITE)
    value: Literal["policy", "behaviour", "expectile"] = _setting(
        "policy", "V(o) of the advantage: Q of the policy, of the batch's actions, or a learned expectile"
    )
    value_samples: int = _setting(1, "policy samples whose mean Q is V(o)", 1, 1000)
    weight_cap: float = _setting(100.0, "largest weight of Eq. 14; 0: no cap", 0, _FINITE)
    weight_norm: bool = _setting(False, "divide the weights by their batch mean")
    alpha: float = _setting(10.0, "weight of fql's distillation, of td3bc's Q (2.5 there)", 0, _FINITE)
    expectile: float = _setting(0.7, "expectile of Q over data actions that V(o) learns", 0, 1)
    # A sweep across the members of one run: "1,5,10" gives each its own value in place of eta or lr.
    etas: str | None = _setting(None, "one --eta for each of the --seeds members, as 1,5,10")
    lrs: str | None = _setting(None, "one --lr for each of the --seeds members, as 1e-4,3e-4")


RUN_ONLY_FIELDS = tuple(field.name for field in fields(TrainConfig) if field.metadata["run_only"])
# Every number has a range: NaN lies in none.
_RANGES = {field.name: field.metadata["range"] for field in fields(TrainConfig) if field.metadata["range"]}
DETERMINISTIC = ("iql", "td3bc")  # algorithms whose policy has one action for an observation
LARGEST_GRID = 10**6  # steps; the device holds the grids of all stages
# Settings of GTP alone, with the published values, which the fused kernels compute.
PUBLISHED = {
    "actor_loss": "gtp",
    "process": "edm",
    "compare_at_zero": False,
    "value": "policy",
    "weight_norm": False,
    "times": "grid",
}
# Setting: the one that reads it, and the values of that one for which it does.
READ_BY = {
    "solver": ("actor_loss", ("solver",)),
    "solver_steps": ("actor_loss", ("solver",)),
    "lambda_q": ("actor_loss", ("linear-q",)),
    "lambda_flow": ("actor_loss", ("gtp", "solver", "linear-q", "shortcut", "meanflow")),
    "compare_at_zero": ("actor_loss", ("gtp", "consistency", "solver", "linear-q", "shortcut")),
    "value": ("actor_loss", ("gtp", "consistency", "denoiser", "solver", "shortcut", "meanflow")),
    "weight_norm": ("actor_loss", ("gtp", "consistency", "denoiser", "solver", "shortcut", "meanflow")),
    "etas": ("actor_loss", ("gtp", "consistency", "denoiser", "solver", "shortcut", "meanflow")),
    "value_samples": ("value", ("policy",)),
    "time_mean": ("times", ("lognormal",)),
    "time_std": ("times", ("lognormal",)),
}


def validate(cfg: TrainConfig) -> TrainConfig:
    """Return the settings if they can be run.

    Raises: UsageError naming the flag, its value and what is allowed.
    """
    if not cfg.env:
        raise UsageError("--env is missing; name a data set, for example --env hopper-demo-v0 (gtp-fast data list)")
    environment_arguments(cfg.env_kwargs)
    for name in _RANGES:
        check_range(name, getattr(cfg, name))
    if cfg.sigma_max <= cfg.sigma_min:
        raise UsageError(f"--sigma-max {cfg.sigma_max} must be above --sigma-min {cfg.sigma_min}")
    if cfg.s1 < cfg.s0:
        raise UsageError(f"--s1 {cfg.s1} must be at least --s0 {cfg.s0}: the grid grows from s0 to s1")
    for name in ("eta", "lr"):
        member_values(cfg, name)
    check_variants(cfg)
    if cfg.bc and cfg.etas is not None:
        raise UsageError(f"--bc means eta = 0 for every member; leave out --etas {shown(cfg.etas)}")
    if cfg.layers != 3 and cfg.algo != "fql":
        raise UsageError(f"--layers {cfg.layers} is for --algo fql; the networks of {cfg.algo} have 3")
    if cfg.max_q_backup and cfg.algo in ("fql", *DETERMINISTIC):
        raise UsageError(f"--max-q-backup does not apply to {cfg.algo}: it draws at most one action at o'; omit it")
    if cfg.etas is not None and cfg.algo in ("fql", "td3bc"):
        raise UsageError(f"--etas {shown(cfg.etas)} does not apply to {cfg.algo}; --alpha weighs its Q against cloning")
    if cfg.algo in DETERMINISTIC and (cfg.candidates, cfg.sampling_steps) != (1, 1):
        raise UsageError(
            f"--candidates {cfg.candidates}, --sampling-steps {cfg.sampling_steps}: {cfg.algo} has one action for an "
            "observation, in one step; pass 1 for both"
        )
    if cfg.bc and cfg.candidates > 1:
        raise UsageError(f"--bc trains no critic to choose among --candidates {cfg.candidates}; pass --candidates 1")
    if (cfg.candidates > 1) != (cfg.select != "none"):
        raise UsageError(
            f"--candidates {cfg.candidates} with --select {cfg.select}: several candidates need --select softmax or "
            "argmax, one candidate needs none"
        )
    return cfg


def check_range(name: str, value: float, typed: str | None = None) -> None:
    """Refuse a value that its setting cannot take.

    Args: typed is the flag that the value came from, where it is not the setting's own.
    Raises: UsageError naming flag, value and range.
    """
    low, high = _RANGES[name]
    if not low <= value <= high:
        raise UsageError(f"{typed or flag(name)} {shown(value)} is outside [{low:g}, {high:g}]")


def environment_arguments(given: object) -> dict[str, Any]:
    """Return the arguments of --env-kwargs: a JSON object as text, or a mapping of the same values; None: no arguments.

    Raises: UsageError with what was seen and an example.
    """
    try:
        found = json.loads(given) if isinstance(given, str) else {} if given is None else given
        if isinstance(found, dict) and all(isinstance(name, str) for name in found):
            return json.loads(_json(found))
        seen = f"is {shown(given)[:80]}"
    except (ValueError, TypeError, RecursionError) as error:
        seen = f"{shown(given)[:80]} is no JSON ({error})"
    raise UsageError(f"""--env-kwargs {seen}, expected a JSON object: --env-kwargs '{{"robot": "a"}}'""")


def canonical_arguments(given: object) -> str | None:
    """Return the arguments of --env-kwargs in the one form that is saved and hashed; None for no arguments."""
    found = environment_arguments(given)
    return _json(found) if found else None


def _json(values: dict[str, Any]) -> str:
    """Return JSON with sorted keys. Raises: ValueError for more text than arguments are: YAML's aliases can nest."""
    text = ""
    for part in json.JSONEncoder(sort_keys=True).iterencode(values):
        text += part
        if len(text) > _LONGEST_JSON:
            raise ValueError(f"longer than {_LONGEST_JSON:,} characters")
    return text


@cache
def setting_types() -> dict[str, Any]:
    """Return the type of every setting, by name."""
    return get_type_hints(TrainConfig)


def member_seeds(cfg: TrainConfig) -> list[int]:
    """Return the seed of each member."""
    return [cfg.seed + i for i in range(cfg.seeds)]


def member_values(cfg: TrainConfig, name: str) -> list[float]:
    """Return the value of "eta" or "lr" for each member: one for all, or those of --etas or --lrs.

    Raises: UsageError when there are not as many numbers as members, or one is out of range.
    """
    listed = getattr(cfg, f"{name}s")
    if listed is None:
        return [getattr(cfg, name)] * cfg.seeds
    try:
        values = [float(part) for part in listed.split(",")]
    except ValueError:
        raise UsageError(f"--{name}s {shown(listed)} is not a list of numbers; write --{name}s 1,5,10") from None
    if len(values) != cfg.seeds:
        raise UsageError(f"--{name}s {shown(listed)} has {len(values)} values for --seeds {cfg.seeds}; give one each")
    for value in values:
        check_range(name, value, f"--{name}s")
    return values


def hash6(cfg: TrainConfig) -> str:
    """Return six hexadecimal digits of the settings that decide the result.

    Settings at their defaults do not count, so that a later version with more settings finds the run again.
    """
    defaults = asdict(TrainConfig())
    decisive = sorted((k, v) for k, v in asdict(cfg).items() if k not in RUN_ONLY_FIELDS and v != defaults[k])
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:6]


def grid_steps(cfg: TrainConfig) -> tuple[int, int]:
    """Return the grid's steps at first and at last: s0 and s1, or N and N of `fixed:N`.

    Raises: UsageError for a schedule that is neither.
    """
    if cfg.steps_schedule == "doubling":
        return cfg.s0, cfg.s1
    kind, _, count = cfg.steps_schedule.partition(":")
    if kind != "fixed" or not (count.isascii() and count.isdigit()) or len(count) > 7:
        raise UsageError(f"--steps-schedule {shown(cfg.steps_schedule)} is neither doubling nor fixed:N, as fixed:40")
    if not 1 <= int(count) <= LARGEST_GRID:
        raise UsageError(f"--steps-schedule {cfg.steps_schedule} is outside [fixed:1, fixed:{LARGEST_GRID}]")
    return int(count), int(count)


def check_variants(cfg: TrainConfig) -> None:
    """Refuse variants that cannot be run, or would change nothing.

    Raises: UsageError naming both settings.
    """
    grid_steps(cfg)
    changed = [
        name for name in (*PUBLISHED, *READ_BY, "steps_schedule") if getattr(cfg, name) != getattr(TrainConfig, name)
    ]
    for name in changed:
        shared = name in ("etas", "value_samples", "lambda_flow")  # older than the variants, and left to the algorithms
        if cfg.algo != "gtp" and not shared:
            raise UsageError(f"{_typed(cfg, name)} is for --algo gtp, not {cfg.algo}")
        reader, values = READ_BY.get(name, ("algo", (cfg.algo,)))
        if getattr(cfg, reader) not in values:
            raise UsageError(f"{_typed(cfg, name)} has no effect with {_typed(cfg, reader)}; leave it out")
    guided = [name for name in ("value", "weight_norm") if name in changed]
    guided += ["actor_loss"] * (cfg.actor_loss == "linear-q")
    if cfg.bc and guided:
        raise UsageError(f"--bc trains no critic, which {_typed(cfg, guided[0])} needs; leave one of them out")
    if cfg.process == "flow" and cfg.sigma_max != 1.0:
        raise UsageError(f"--process flow runs over times from 0 to 1: pass --sigma-max 1, not {cfg.sigma_max}")


def is_variant(settings: Any) -> bool:
    """Say whether GTP's step, or how its policy acts, differs from the published one.

    Args: settings of a run, or a policy's description, which has `process` alone of what a variant may change.
    """
    return settings.algo == "gtp" and any(getattr(settings, name, value) != value for name, value in PUBLISHED.items())


def not_fused(cfg: TrainConfig) -> str | None:
    """Return, in words, the setting that keeps this run from the fused step, or None."""
    for name, value in PUBLISHED.items():
        if getattr(cfg, name) != value:
            needed = f"no {flag(name)}" if value is False else f"{flag(name)} {value}"
            return f"{needed}: the fused step computes the published loss alone, not {_typed(cfg, name)}"
    return None


def _typed(cfg: TrainConfig, name: str) -> str:
    """Return a setting as its flag."""
    value = getattr(cfg, name)
    return flag(name) if value is True else f"{flag(name)} {value}"


def shown(value: object) -> str:
    """Return a short form of a value: nested YAML aliases can stand for more text than fits in memory."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def flag(name: str) -> str:
    """Return the flag of a field: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")
