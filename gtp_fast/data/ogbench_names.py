"""OGBench's single-task names: the file that a name reads, the environment that scores it, the task that rewards it.

`cube-single-play-singletask-task3-v0` is task 3 of the environment cube-single on the file cube-single-play-v0; without
`-task3` it is the environment's default task. A name with `visual-` has frames for observations.
"""

from __future__ import annotations

import re

from gtp_fast.data.spec import DataSpec, EvalEnv

OGBENCH_BASE = "https://rail.eecs.berkeley.edu/datasets/ogbench"
FRAME = (64, 64, 3)  # height, width, channels of a visual observation, uint8
EPISODES = 50  # of FQL's published evaluation of these tasks
# The names that the paper prints, and short ones, beside the data set that each stands for. Its rows of states name no
# task: OGBench's default.
_PAPER = {
    "cube-single-singletask": "cube-single-play-singletask-v0",
    "cube-double-singletask": "cube-double-play-singletask-v0",
    "visual-cube-single-play-singletask-task1-v0": "visual-cube-single-play-singletask-task1-v0",
    "visual-cube-double-play-singletask-task1-v0": "visual-cube-double-play-singletask-task1-v0",
}
_SHORT = {row.split("-play-")[0].removesuffix("-singletask"): row for row in _PAPER}
# Observation and action sizes of ogbench 1.2.2's environments, which the tests hold them to.
_CUBES = {
    f"cube-{word}": (19 + 9 * n, 5) for word, n in (("single", 1), ("double", 2), ("triple", 3), ("quadruple", 4))
}
_PUZZLES = {"puzzle-3x3": (55, 5), "puzzle-4x4": (83, 5), "puzzle-4x5": (99, 5), "puzzle-4x6": (115, 5)}
_MAZES = {
    **{f"pointmaze-{maze}": (2, 2) for maze in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{maze}": (29, 8) for maze in ("medium", "large", "giant", "teleport")},
    **{f"humanoidmaze-{maze}": (69, 21) for maze in ("medium", "large", "giant")},
    **{f"antsoccer-{field}": (42, 8) for field in ("arena", "medium")},
}
SIZES = {**_CUBES, "scene": (40, 5), **_PUZZLES, **_MAZES}
_UNSEEN = ("pointmaze", "antsoccer")  # have no visual version
_STEM = "|".join(SIZES)
_TASK = r"-singletask(?P<task>-task[1-5])?-v0"
_NAME = re.compile(rf"(?P<visual>visual-)?(?P<stem>{_STEM})-(?P<kind>play|noisy|navigate|stitch|explore){_TASK}")
_ENV = re.compile(rf"ogbench:(?P<visual>visual-)?(?P<stem>{_STEM}){_TASK}")


def entry(name: str) -> DataSpec | None:
    """Read an OGBench name, or the id of one of its environments for a file of one's own; None where it is neither."""
    row = _SHORT.get(name, name)
    full = _PAPER.get(row, row)
    match = _NAME.fullmatch(full) or _ENV.fullmatch(full)
    if match is None or (match["visual"] and match["stem"].startswith(_UNSEEN)):
        return None
    visual, stem = match["visual"] or "", match["stem"]
    kind = match.groupdict().get("kind")
    if kind is not None and (kind in ("play", "noisy")) == (stem in _MAZES):
        return None
    file = f"{visual}{stem}-{kind}-v0.npz" if kind else None
    obs_dim, action_dim = SIZES[stem]
    return DataSpec(
        name,
        "ogbench" if file else "file",
        url=f"{OGBENCH_BASE}/{file}" if file else None,
        filename=file,
        obs_dim=None if visual else obs_dim,
        obs_shape=FRAME if visual else None,
        action_dim=action_dim,
        eval_env=EvalEnv(f"ogbench:{visual}{stem}-singletask{match['task'] or ''}-v0"),
        ref_random=0.0,
        ref_expert=1.0,
        task="ogbench",
        paper_row=next((printed for printed, means in _PAPER.items() if means == full), None),
        eval_episodes=EPISODES,
        score="success",
    )


def task(spec: DataSpec) -> tuple[str, int] | None:
    """Return the environment's stem ("cube-single") and the task, 0 for its default; None for other entries."""
    match = _ENV.fullmatch(spec.eval_env.id) if spec.eval_env else None
    return (match["stem"], int((match["task"] or "-task0")[-1])) if match else None


def known() -> list[str]:
    """List the paper's rows, and every task of their data."""
    tasks = ("", *(f"-task{number}" for number in range(1, 6)))
    stems = [f"{visual}cube-{word}" for visual in ("", "visual-") for word in ("single", "double")]
    return list(dict.fromkeys([*_PAPER, *(f"{stem}-play-singletask{task}-v0" for stem in stems for task in tasks)]))
