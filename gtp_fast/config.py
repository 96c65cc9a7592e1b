"""Variants of GTP that the paper compares: what their settings mean, and which of them have no effect together.

The settings of a run: one frozen dataclass, read by the command line, YAML files and Python alike.

One line of help for every setting; a test keeps it complete.
"""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from gtp_fast.errors import UsageError

LARGEST_GRID = 10**6  # steps; the grids of all stages lie on the device
# Settings of GTP's step alone, with what other algorithms and the fused kernels have.
PUBLISHED = {
    "actor_loss": "gtp",
    "process": "edm",
    "compare_at_zero": False,
    "value": "policy",
    "weight_norm": False,
    "times": "grid",
}
# name: the setting that reads it, with its values that do.
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
    changed = [name for name in (*PUBLISHED, *READ_BY, "steps_schedule") if getattr(cfg, name) != _default(cfg, name)]
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


def not_fused(cfg: TrainConfig) -> str | None:
    """Return the setting that the fused step needs and this run has not, in words, or None."""
    for name, value in PUBLISHED.items():
        if getattr(cfg, name) != value:
            needed = f"no {flag(name)}" if value is False else f"{flag(name)} {value}"
            return f"{needed}: the fused step computes the published loss alone, not {_typed(cfg, name)}"
    return None


def _default(cfg: TrainConfig, name: str) -> object:
    return getattr(type(cfg), name)


def _typed(cfg: TrainConfig, name: str) -> str:
    """Return a setting as it is typed."""
    value = getattr(cfg, name)
    return flag(name) if value is True else f"{flag(name)} {value}"


def shown(value: object) -> str:
    """Return a value in few letters: nested YAML aliases stand for more text than fits in memory."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def flag(name: str) -> str:
    """Return the flag of a field: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Precedence: the defaults here < `configs/presets/<preset>.yaml` < `configs/tasks/<task>.yaml` < `--config FILE`
    < flags. Floats are in the units of SPEC's symbols: sigmas are noise levels in action units.
    """

    # What to train on.
    env: str = ""  # data set name: hopper-demo-v0, halfcheetah-medium-v2, a Minari id ...
    dataset: str | None = None  # a file, directory or Minari id that takes the place of the named data
    clip_actions: bool = False  # clip actions that lie outside [-1, 1] and say how many
    normalise_obs: bool = False  # observations as (o - mean) / std of the data, also of those that the policy is given
    frame_stack: int = 1  # frames an observation is made of, where they are pictures; 3 in FQL
    augment: float = 0.5  # probability that a step shifts its pictures by up to 3 pixels
    # What to train.
    algo: Literal["gtp", "dql", "cac", "fql", "iql", "td3bc"] = "gtp"
    bc: bool = False  # behaviour cloning: eta = 0 and no critic
    preset: Literal["paper", "stable"] = "stable"
    steps: int = 2_000_000
    batch_size: int = 256
    seed: int = 0
    seeds: int = 1  # independent members trained at once: seed, seed + 1, ...
    # Acting.
    sampling_steps: int = 5  # K
    candidates: int = 1  # actions drawn for each observation, of which Q picks one
    select: Literal["none", "softmax", "argmax"] = "none"
    # The machine.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "eager", "compiled", "fused"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"  # of the operands of products; sums are float32
    graph: bool = True  # CUDA graph; has no effect on the CPU
    unroll: int = 20  # train steps in one captured graph
    buffer: Literal["auto", "device", "host"] = "auto"  # where the data set lies; host: it is streamed
    threads: int = 0  # CPU threads of the training process; 0: all cores
    # The run.
    run_dir: str | None = None
    resume: str = "auto"  # auto, never, or a run directory or checkpoint
    log_every: int = 1_000
    eval_every: int = 50_000  # 0: never
    eval_episodes: int = 10
    eval_workers: int = 0  # processes that step environments; 0: one beside a CPU, all cores but one beside a GPU
    save_every: int = 50_000  # 0: only the last step
    keep: int = 3  # checkpoints kept
    tensorboard: bool = False
    wandb: bool = False
    profile: bool = False
    # Networks and optimisation (SPEC 1, 5).
    hidden: int = 256
    layers: int = 3  # hidden layers; other than 3 for fql alone
    lr: float = 3e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"
    grad_norm: float = 9.0  # largest gradient norm, each network; 0: no clipping
    gamma: float = 0.99
    tau: float = 0.005  # critic target, each step
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = 1_000
    max_q_backup: bool = False
    reward_scale: float = 1.0  # r is trained as (r + reward_shift) * reward_scale
    reward_shift: float = 0.0
    # Time (SPEC 2).
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    s0: int = 10
    s1: int = 1280
    steps_schedule: str = "doubling"  # or "fixed:N": N grid steps from first to last
    times: Literal["grid", "lognormal"] = "grid"  # n drawn uniformly, or so that ln t is normal
    time_mean: float = -1.1  # of ln t
    time_std: float = 2.0
    process: Literal["edm", "flow"] = "edm"  # a_t = a + t z, or (1 - t) a + t z
    # Losses and guidance (SPEC 3, 4).
    actor_loss: Literal["gtp", "consistency", "denoiser", "solver", "linear-q", "shortcut", "meanflow"] = "gtp"
    lambda_flow: float = 1.0
    solver: Literal["heun", "euler"] = "heun"  # of --actor-loss solver
    solver_steps: int = 3  # its grid steps from t down to u
    lambda_q: float = 0.01  # weight of Q in --actor-loss linear-q
    compare_at_zero: bool = False  # both sides of L_traj are carried to time 0 by the EMA actor
    weighting: Literal["paper", "stable"] = "paper"
    eta: float = 1.0
    value: Literal["policy", "behaviour", "expectile"] = "policy"  # what V(o) of the advantage is made of
    value_samples: int = 1  # M, the policy's samples whose mean Q is V(o) in the advantage
    weight_cap: float = 100.0  # 0: no cap, Eq. 14 to the letter
    weight_norm: bool = False  # weights divided by their batch mean, after the cap
    alpha: float = 10.0  # weight of fql's distillation, of td3bc's Q
    expectile: float = 0.7  # of Q over data actions, where V(o) is learned
    # A sweep across the members of one run: "1,5,10" gives each its own value in place of eta or lr.
    etas: str | None = None
    lrs: str | None = None


# Fields that decide where and how a run is watched, not what it computes: they may change when it is resumed.
RUN_ONLY_FIELDS = (
    *("run_dir", "resume", "log_every", "eval_every", "eval_episodes", "eval_workers", "save_every", "keep"),
    *("tensorboard", "wandb", "profile", "threads", "graph", "unroll", "buffer", "dataset"),
)
DETERMINISTIC = ("iql", "td3bc")  # algorithms whose policy has one action for an observation
_FINITE = 1e30  # float32 holds it
# name: (lowest, highest) allowed, both included. Every number has a row: NaN lies in no range.
_RANGES: dict[str, tuple[float, float]] = {
    "frame_stack": (1, 16),
    "augment": (0, 1),
    "steps": (1, 10**12),
    "batch_size": (1, 10**7),
    "seed": (0, 2**63 - 1),
    "seeds": (1, 4096),
    "sampling_steps": (1, 1000),
    "candidates": (1, 10_000),
    "threads": (0, 4096),
    "unroll": (1, 10_000),
    "log_every": (1, 10**12),
    "eval_every": (0, 10**12),
    "eval_episodes": (1, 10**6),
    "eval_workers": (0, 4096),
    "save_every": (0, 10**12),
    "keep": (1, 10**6),
    "hidden": (1, 65_536),
    "lr": (0, _FINITE),
    "grad_norm": (0, _FINITE),
    "gamma": (0, 1),
    "tau": (0, 1),
    "ema_decay": (0, 1),
    "ema_every": (1, 10**12),
    "ema_start": (0, 10**12),
    "reward_scale": (-_FINITE, _FINITE),
    "reward_shift": (-_FINITE, _FINITE),
    "sigma_min": (1e-12, 1e6),
    "sigma_max": (1e-12, 1e6),
    "sigma_data": (1e-12, 1e6),
    "rho": (0.02, 1e3),  # sigma^(1/rho) stays within float64
    "s0": (1, 10**6),
    "s1": (1, 10**6),  # the grids of all stages lie on the device
    "time_mean": (-100, 100),
    "time_std": (0.01, 100),  # below it a grid may hold no time at all
    "lambda_flow": (0, _FINITE),
    "solver_steps": (1, 3),
    "lambda_q": (0, _FINITE),
    "eta": (0, _FINITE),
    "value_samples": (1, 1000),
    "weight_cap": (0, _FINITE),
    "alpha": (0, _FINITE),
    "expectile": (0, 1),
    "layers": (1, 16),
}


def validate(cfg: TrainConfig) -> TrainConfig:
    """Return the settings if they can be run.

    Raises: UsageError naming the flag, its value and what is allowed.
    """
    if not cfg.env:
        raise UsageError("--env is missing; name a data set, for example --env hopper-demo-v0 (gtp-fast data list)")
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
        raise UsageError(f"--max-q-backup is none of {cfg.algo}'s: it draws at most one action at o'; leave it out")
    if cfg.etas is not None and cfg.algo in ("fql", "td3bc"):
        raise UsageError(f"--etas {shown(cfg.etas)} is none of {cfg.algo}'s; what weighs its Q and cloning is --alpha")
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
        raise UsageError(f"--{name}s {shown(listed)} is no list of numbers; write --{name}s 1,5,10") from None
    if len(values) != cfg.seeds:
        raise UsageError(f"--{name}s {shown(listed)} has {len(values)} values for --seeds {cfg.seeds}; give one each")
    for value in values:
        check_range(name, value, f"--{name}s")
    return values


def hash6(cfg: TrainConfig) -> str:
    """Return six hexadecimal digits of the settings that decide the result.

    Settings at their defaults do not count: a later version that has more of them finds the run again.
    """
    defaults = asdict(TrainConfig())
    decisive = sorted((k, v) for k, v in asdict(cfg).items() if k not in RUN_ONLY_FIELDS and v != defaults[k])
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:6]


FIELD_HELP = {
    "env": "data set: hopper-demo-v0, halfcheetah-medium-v2, a Minari id ... (gtp-fast data list)",
    "dataset": "D4RL-layout file, directory of them, OGBench file, Minari directory or id; --env then names the scorer",
    "clip_actions": "clip actions outside [-1, 1] and say how many",
    "normalise_obs": "subtract the data's mean from observations and divide by their spread; saved with the policy",
    "frame_stack": "frames that make one observation, where observations are pictures",
    "augment": "probability that a step shifts its pictures by up to 3 pixels",
    "algo": "algorithm",
    "bc": "behaviour cloning: no critic, every weight 1",
    "preset": "settings of the algorithm that belong together",
    "steps": "train steps in all; schedules stretch over them",
    "batch_size": "transitions a step",
    "seed": "first seed",
    "seeds": "independent runs trained at once: seed, seed + 1, ...",
    "sampling_steps": "K, steps from noise to action",
    "candidates": "actions drawn for each observation when evaluated; Q picks one",
    "select": "how Q picks among candidates",
    "device": "where to train",
    "backend": "how the step runs",
    "precision": "of the operands of matrix products; auto: tf32 on a GPU, fp32 on the CPU",
    "graph": "capture steps in CUDA graphs (GPU)",
    "unroll": "train steps in one graph (GPU)",
    "buffer": "where the data set lies; host: it is streamed to the device; auto: host where it does not fit",
    "threads": "CPU threads; 0 takes all cores",
    "run_dir": "the run's own directory; default runs/<env>/<algo>-s<seed>-<UTC>-<hash>",
    "resume": "auto continues an unfinished run of the same settings; never; or a run's path",
    "log_every": "steps between log lines",
    "eval_every": "steps between evaluations; 0: never",
    "eval_episodes": "episodes of an evaluation",
    "eval_workers": "processes of an evaluation; 0: one beside training on a CPU, all cores but one on a GPU",
    "save_every": "steps between checkpoints; 0: only the last step",
    "keep": "checkpoints kept",
    "tensorboard": "also log to TensorBoard (extra: track)",
    "wandb": "also log to Weights & Biases (extra: track)",
    "profile": "NVTX ranges around the phases of each step",
    "hidden": "width of the networks",
    "layers": "hidden layers (of fql; the others have 3)",
    "lr": "Adam's learning rate",
    "lr_schedule": "constant, or a cosine to 0 at the last step",
    "grad_norm": "largest gradient norm of each network; 0: no clipping",
    "gamma": "discount a step",
    "tau": "rate of the critic's target",
    "ema_decay": "decay of the actor's EMA",
    "ema_every": "steps between EMA updates",
    "ema_start": "first step of the EMA",
    "max_q_backup": "TD target from the best of 10 sampled actions",
    "reward_scale": "rewards are trained as (r + shift) * scale",
    "reward_shift": "see --reward-scale",
    "sigma_min": "noise level that stands for time 0",
    "sigma_max": "largest noise level",
    "sigma_data": "scale of the actions",
    "rho": "curvature of the Karras grid",
    "s0": "grid steps at first",
    "s1": "grid steps at last",
    "steps_schedule": "grid steps over the run: doubling from s0 to s1, or fixed:N (Table 8)",
    "times": "how t is drawn from the grid: uniformly, or so that ln t is normal",
    "time_mean": "mean of ln t",
    "time_std": "standard deviation of ln t",
    "process": "noising of actions: edm, a + t z; flow, (1 - t) a + t z",
    "actor_loss": "what the actor learns: the paper's loss, or one that it compares with",
    "lambda_flow": "weight of the instantaneous loss (Eq. 19)",
    "solver": "method of --actor-loss solver",
    "solver_steps": "its grid steps from t to u, at most 3",
    "lambda_q": "weight of Q in --actor-loss linear-q",
    "compare_at_zero": "carry both sides of the trajectory loss to time 0 before they are compared",
    "weighting": "factors over t in the losses",
    "eta": "strength of value guidance (Eq. 14); iql's inverse temperature",
    "value": "V(o) of the advantage: Q of the policy, of the batch's actions, or a learned expectile",
    "value_samples": "policy samples whose mean Q is V(o)",
    "weight_cap": "largest weight of Eq. 14; 0: no cap",
    "weight_norm": "divide the weights by their batch mean",
    "alpha": "weight of fql's distillation, of td3bc's Q (2.5 there)",
    "expectile": "expectile of Q over data actions that V(o) learns",
    "etas": "one --eta for each of the --seeds members, as 1,5,10",
    "lrs": "one --lr for each of the --seeds members, as 1e-4,3e-4",
}
