"""Minari's ids. The environment is chosen here, never by what a file's metadata names."""

from __future__ import annotations

import re

from gtp_fast.data_spec import BODIES, DataSpec, EvalEnv, scored_on, sizes

_ADROIT = {  # observation size, action size, random, expert
    "door": (39, 28, -56.512833, 2880.5693087298737),
    "hammer": (46, 26, -274.856578, 12794.134825156867),
    "pen": (45, 24, 96.262799, 3076.8331017826877),
    "relocate": (39, 30, -6.425911, 4233.877797728884),
}
_MINARI = re.compile(r"(mujoco|D4RL)/([a-z0-9]+)/([\w-]+)-v\d+")
# Namespaces of any depth, or none: then minari: says that the name is not D4RL's.
_ID = re.compile(r"(?:minari:)?([\w-]+(?:/[\w-]+)+-v\d+)|minari:([\w-]+-v\d+)", re.ASCII)


def dataset_id(name: str) -> str | None:
    """Return the Minari id that a name stands for: NAMESPACE/.../NAME-vN, minari:NAME-vN; None for another name."""
    match = _ID.fullmatch(name)
    return match and (match[1] or match[2])


def entry(name: str) -> DataSpec | None:
    """Read a Minari id; the environment is the catalogue's, never what the file's metadata names."""
    found = dataset_id(name)
    if found is None:
        return None
    name = found
    match = _MINARI.fullmatch(name)
    if match is None:
        return DataSpec(name, "minari")
    family, body, _ = match.groups()
    bodies = {key.lower(): key for key in BODIES}
    if family == "mujoco" and body in bodies:
        return scored_on(name, "minari", f"{bodies[body]}-v5")
    if family == "D4RL" and body in _ADROIT:
        env = EvalEnv(f"gymnasium_robotics:AdroitHand{body.capitalize()}-v1")
        return DataSpec(name, "minari", **sizes(_ADROIT[body]), eval_env=env, eval_episodes=100)
    return DataSpec(name, "minari", eval_episodes=100 if family == "D4RL" else 10)


def known() -> list[str]:
    """List the usual members of the pattern."""
    bodies = [f"mujoco/{b.lower()}/{lv}-v0" for b in list(BODIES)[:4] for lv in ("simple", "medium", "expert")]
    return [*bodies, *(f"D4RL/{hand}/{lv}-v2" for hand in _ADROIT for lv in ("human", "cloned", "expert"))]
