"""Environments and policies for the tests of evaluation; a worker process finds them as eval_cases:NAME."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch

from gtp_fast import algorithms
from gtp_fast.algorithms import networks
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.policy.policy import Policy, PolicyConfig


class Small(gymnasium.Env):
    """Four numbers in, three out, eight steps of reward 1; the parent of the other cases."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.taken = seed or 0, 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.taken += 1
        return np.full(4, self.taken / 10, np.float32), 1.0, False, self.taken == 8, {}


class Diverging(Small):
    """Every second episode blows up at its third step, in the way named."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return (obs * np.nan if self.way == "reset" else obs), info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.seed % 2 and self.taken == 3:
            obs = obs * np.nan if self.way in ("nan", "healthy") else np.full(4, 1e300) if self.way == "large" else obs
            reward = np.nan if self.way == "reward" else reward
            terminated = self.way == "healthy"  # as MuJoCo's: is_healthy asks for finite numbers
        return obs, reward, terminated, truncated, info


class Counting(Small):
    """Ends after 3 to 9 steps, as its seed says, by either cause; step n has reward n, and none may come late."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.length = 3 + self.seed % 7
        return obs, info

    def step(self, action):
        self.taken += 1
        assert self.taken <= self.length, "a step after the end"
        ended, by_time = self.taken == self.length, self.length % 2 == 0
        return np.full(4, self.taken / 10, np.float32), self.taken, ended and not by_time, ended and by_time, {}


class Numbered(Small):
    """An endless episode whose every reward is its seed."""

    def step(self, action):
        return np.zeros(4, np.float32), self.seed, False, False, {}


class Succeeding(Small):
    """Every second episode says of its fourth step, and of that alone, that it was a success."""

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"success": np.float32(self.seed % 2 and self.taken == 4)}


class Failing(Small):
    """Raises in its third step, or kills the process that steps it."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way

    def step(self, action):
        if self.taken == 2 and self.seed == 6:
            if self.way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the robot fell apart")
        return super().step(action)


class Unlicensed(Small):
    """A simulator that fails in the middle of an episode while a file named in LICENCE is absent."""

    def step(self, action):
        if self.taken == 3 and not Path(os.environ.get("LICENCE", "none")).exists():
            raise RuntimeError("the simulator lost its licence")
        return super().step(action)


class Breaking(Small):
    """Raises at the place named, leaves Python there, or kills the process in its first step."""

    def __init__(self, where: str):
        super().__init__()
        self.where = where
        self._break("init")

    def _break(self, place: str):
        if self.where == place:
            raise OSError("no\nport")
        if place == "step" and self.where == "exit":
            sys.exit(0)
        if place == "step" and self.where == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, *, seed=None, options=None):
        self._break("reset")
        return super().reset(seed=seed)

    def step(self, action):
        self._break("step")
        return super().step(action)


# What an environment returns: after which call, and what of it is replaced. The observation is four float32 of 0.
ODD: dict[str, Any] = {
    "obs alone": ("reset", lambda obs, info: obs),
    "three": ("reset", lambda obs, info: (obs, info, 0)),
    "no info": ("reset", lambda obs, info: (obs, None)),
    "none": ("reset", lambda obs, info: None),
    "row": ("reset", lambda obs, info: (obs[None], info)),
    "short": ("reset", lambda obs, info: (obs[:1], info)),
    "scalar": ("reset", lambda obs, info: (0.5, info)),
    "number of numpy": ("reset", lambda obs, info: (np.float32(0.5), info)),
    "list": ("reset", lambda obs, info: (obs.tolist(), info)),
    "dict": ("reset", lambda obs, info: ({"obs": obs}, info)),
    "text": ("reset", lambda obs, info: ("0000", info)),
    "complex": ("reset", lambda obs, info: (obs.astype(complex), info)),
    "nan at reset": ("reset", lambda obs, info: (obs * np.nan, info)),
    "four": ("step", lambda obs, reward, end, cut, info: (obs, reward, end, info)),
    "six": ("step", lambda obs, reward, end, cut, info: (obs, reward, end, cut, info, 0)),
    "no step": ("step", lambda obs, reward, end, cut, info: None),
    "array of five": ("step", lambda obs, reward, end, cut, info: np.zeros(5)),
    "row later": ("step", lambda obs, reward, end, cut, info: (obs[None], reward, end, cut, info)),
    "one later": ("step", lambda obs, reward, end, cut, info: (0.5, reward, end, cut, info)),
    "two rewards": ("step", lambda obs, reward, end, cut, info: (obs, np.ones(2), end, cut, info)),
    "no reward": ("step", lambda obs, reward, end, cut, info: (obs, None, end, cut, info)),
    "reward in words": ("step", lambda obs, reward, end, cut, info: (obs, "1.0", end, cut, info)),
    "reward in a list": ("step", lambda obs, reward, end, cut, info: (obs, [1.0], end, cut, info)),
    "end in words": ("step", lambda obs, reward, end, cut, info: (obs, reward, "no", cut, info)),
    "no end": ("step", lambda obs, reward, end, cut, info: (obs, reward, None, cut, info)),
    "ends": ("step", lambda obs, reward, end, cut, info: (obs, reward, np.zeros(2, bool), cut, info)),
    "end of 7": ("step", lambda obs, reward, end, cut, info: (obs, reward, 7, cut, info)),
    "info in cut's place": ("step", lambda obs, reward, end, cut, info: (obs, reward, end, info, info)),
    "no info later": ("step", lambda obs, reward, end, cut, info: (obs, reward, end, cut, None)),
    # These fit: one number, one boolean, a float that NumPy casts.
    "reward of one": ("step", lambda obs, reward, end, cut, info: (obs, np.array([reward]), end, cut, info)),
    "reward of none": ("step", lambda obs, reward, end, cut, info: (obs, np.array(1), end, cut, info)),
    "whole reward": ("step", lambda obs, reward, end, cut, info: (obs, 1, end, cut, info)),
    "float32 reward": ("step", lambda obs, reward, end, cut, info: (obs, np.float32(1), end, cut, info)),
    "true reward": ("step", lambda obs, reward, end, cut, info: (obs, np.True_, end, cut, info)),
    "torch reward": ("step", lambda obs, reward, end, cut, info: (obs, torch.ones(1), end, cut, info)),
    "numpy ends": ("step", lambda obs, reward, end, cut, info: (obs, reward, np.False_, np.array([cut]), info)),
    "number ends": ("step", lambda obs, reward, end, cut, info: (obs, reward, 0, np.int64(cut), info)),
    "float64": ("step", lambda obs, reward, end, cut, info: (obs.astype(np.float64), reward, end, cut, info)),
    "list of five": ("step", lambda *five: list(five)),
}


class Returning(Small):
    """Returns something else than Gymnasium's API and its own spaces say, in a way of ODD."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, way: str, render_mode: str | None = None):
        super().__init__()
        self.render_mode, (self.call, self.change) = render_mode, ODD[way]

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed)
        return self.change(*found) if self.call == "reset" else found

    def step(self, action):
        found = super().step(action)
        return self.change(*found) if self.call == "step" else found

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


class Lasting(Small):
    """An episode without an end, which leaves the id of the process that steps it in a folder."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder = Path(folder)

    def step(self, action):
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.01)
        return np.zeros(4, np.float32), 1.0, False, False, {}


class Hanging(Small):
    """Hangs at the place named while a file exists: it sleeps, or stays in C code that keeps Python's lock."""

    def __init__(self, file: str, where: str = "step", locked: bool = False):
        super().__init__()
        self.file, self.where, self.locked = Path(file), where, locked
        self._hang("init")

    def _hang(self, place: str):
        while self.where == place and self.file.exists():
            ctypes.PyDLL(None).sleep(600) if self.locked else time.sleep(0.05)

    def reset(self, *, seed=None, options=None):
        self._hang("reset")
        return super().reset(seed=seed)

    def step(self, action):
        if self.taken == 3:  # the check before training makes one
            self._hang("step")
        self._hang("first step")
        return super().step(action)


class Helped(Small):
    """Has a forked helper, which leaves its process id in a folder; the first environment waits for a kill."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder = Path(folder)

    def step(self, action):
        if not any(self.folder.iterdir()):
            if not (helper := os.fork()):
                time.sleep(60)
                os._exit(0)
            (self.folder / str(helper)).touch()
            time.sleep(60)
        return super().step(action)


class Bounded(Small):
    """Takes one number within its bounds and no other; the reward of a step is that number."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.action_space = gymnasium.spaces.Box(low, high, (1,), np.float32)

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"action {action} lies outside {self.action_space}")
        obs, _, *rest = super().step(action)
        return (obs, float(action[0]), *rest)


class Row(gymnasium.ObservationWrapper, gymnasium.utils.RecordConstructorArgs):
    """A wrapper that adds an axis and does not say so."""

    def __init__(self, env):
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def observation(self, observation):
        return observation[None]


class Endless(Small):
    """No episode ends, by no cause."""

    def step(self, action):
        return np.zeros(4, np.float32), 1.0, False, False, {}


class Fetching(Small):
    """Says as Fetch does which of its steps is a success, in the form named."""

    def __init__(self, form: str):
        super().__init__()
        self.form = {"bool": bool, "number": float, "array": lambda x: np.array([x])}[form]

    def step(self, action):
        *found, _ = super().step(action)
        return *found, {"is_success": self.form(self.seed % 2 and self.taken == 4)}


class Talking(Small):
    """Prints at each step, as environments in development do."""

    def step(self, action):
        sys.stdout.write(f"step {self.taken}\n")
        sys.stdout.flush()
        return super().step(action)


class Painted(Small):
    """A square that moves with every step."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:, 4 * self.taken % 32 :][:, :4] = (255, 8 * self.taken, 0)
        return picture


class Reaching(gymnasium.Env):
    """A goal to push a point to, in observations of parts that stand in no alphabetical order, by forces up to 2."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self):
        plane = gymnasium.spaces.Box(-50, 50, (2,), np.float64)
        parts = [("observation", plane), ("left", gymnasium.spaces.Discrete(9)), ("desired_goal", plane)]
        self.observation_space = gymnasium.spaces.Dict(OrderedDict([*parts, ("achieved_goal", plane)]))
        self.action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.goal, self.left = np.zeros(2), self.np_random.uniform(-5, 5, 2), 8
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, np.float32))
        self.at, self.left = self.at + action, self.left - 1
        return self._seen(), -float(np.abs(self.at - self.goal).max()), False, self.left == 0, {}

    def _seen(self):
        return {"desired_goal": self.goal, "left": self.left, "observation": self.at / 2, "achieved_goal": self.at}


def spec(name: str, **kwargs: Any) -> DataSpec:
    """Return a catalogue entry that is evaluated in one of these environments."""
    return DataSpec(name, "file", eval_env=EvalEnv(f"eval_cases:gtp_fast_tests/{name}-v0", tuple(kwargs.items())))


def config(obs_dim=4, action_dim=3, seeds=(0, 1)) -> PolicyConfig:
    """Return a small policy's description."""
    return PolicyConfig(obs_dim, action_dim, 16, 0.002, 10.0, 0.5, 7.0, 2, 1, "none", seeds)


def tensors(c: PolicyConfig):
    """Return untrained parameters for a description."""
    layout = algorithms.of(c).layouts(c, c.obs_dim, c.action_dim)["actor"]
    return {"actor": networks.init_flat(layout, list(c.seeds))}


def untrained(obs_dim=4, action_dim=3) -> Policy:
    """Return a small policy of two members."""
    c = config(obs_dim, action_dim)
    return Policy(c, tensors(c))


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def group(leader: int) -> list[int]:
    """Return the processes of a group."""
    found = [int(place.name) for place in Path("/proc").iterdir() if place.name.isdecimal()]
    return [pid for pid in found if _is_in(pid, leader)]


def _is_in(pid: int, leader: int) -> bool:
    try:
        return os.getpgid(pid) == leader
    except ProcessLookupError:
        return False


CASES = (Small, Diverging, Counting, Numbered, Succeeding, Failing, Breaking, Returning, Lasting, Bounded, Painted)
for case in (*CASES, Hanging, Helped, Talking, Reaching, Endless, Fetching, Unlicensed):
    limit = 6 if case is Numbered else None
    gymnasium.register(f"gtp_fast_tests/{case.__name__}-v0", case, max_episode_steps=limit, disable_env_checker=True)
for name, low, high in (("Wide", -2.0, 2.0), ("Quarter", -0.25, 0.25), ("Positive", 0.0, 1.0)):
    gymnasium.register(
        f"gtp_fast_tests/{name}-v0", Bounded, disable_env_checker=True, kwargs={"low": low, "high": high}
    )
