"""The steps of a graph as tasks: any order that the declared memory allows gives the bits of steps in a row.

Two things prove it. What a launch declares is what it touches, byte for byte, and no block touches what another block
of its launch stores; both are recorded in the interpreter. And random orders of real steps end in the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from families import family
from fused_cases import fused_config, prepared
from gtp_kernels import graph
from gtp_kernels.launch import Launch, Tuning
from hypothesis import given, settings
from hypothesis import strategies as st
from learn_cases import STABLE
from recording import conflict, recorded
from test_graph import ends_before

from gtp_fast.algorithms.backends import graph_lengths, pieces

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter records addresses; run it where torch sees no GPU"
)

EVERY_3: dict[str, Any] = {"ema_every": 3, "ema_start": 2, "unroll": 6}
KINDS: dict[str, dict[str, Any]] = {
    "paper": {"seeds": 1} | EVERY_3,
    "two-seeds-bf16": {"precision": "bf16", "sampling_steps": 1} | EVERY_3,
    "bc-tf32": {"seeds": 1, "bc": True, "precision": "tf32"} | EVERY_3,
    "ema-at-every-step": {"seeds": 1, "unroll": 6, "sampling_steps": 1} | STABLE,
    "length-and-interval-apart": {"seeds": 1, "ema_every": 5, "ema_start": 0, "unroll": 4, "sampling_steps": 2},
    "max-q-backup": {"seeds": 1, "max_q_backup": True, "sampling_steps": 1} | EVERY_3,
}
EVERY_5 = {"every-5": {"seeds": 1, "sampling_steps": 1, "ema_start": 2, "unroll": 10}}


def shuffled(launches: Sequence[Launch], random: Random) -> list[Launch]:
    """Return the launches in an order in which each follows those that it waits for."""
    waiting = [set(own) for own in graph.waits(launches)]
    left, order = set(range(len(launches))), []
    while left:
        chosen = random.choice(sorted(i for i in left if not waiting[i] & left))
        left.remove(chosen)
        order.append(launches[chosen])
    return order


@cache
def in_a_row(kind: str, steps: int) -> tuple[dict[str, torch.Tensor], str]:
    """Return the state after so many steps of one launch after another, and its digest."""
    state, step = prepared(fused_config(**(KINDS | EVERY_5)[kind]))
    if steps:
        state.load_(in_a_row(kind, steps - 1)[0])
        step.refresh()
        step()
    return {name: tensor.clone() for name, tensor in state.tensors().items()}, state.digest()


def in_any_order(kind: str, start: int, steps: int, random: Random) -> str:
    """Make the steps from `start` on in the pieces that a GPU replays, each in a random order; return the digest."""
    cfg = fused_config(**(KINDS | EVERY_5)[kind])
    state, step = prepared(cfg)
    state.load_(in_a_row(kind, start)[0])
    step.refresh()
    for length in pieces(start, steps, graph_lengths(cfg)):
        for launch in shuffled(step.of(length), random):
            launch()
    return state.digest()


@pytest.mark.parametrize("kind", family(KINDS, quick=["ema-at-every-step"]))
@settings(max_examples=1)
@given(random=st.randoms(use_true_random=False))
def test_any_order_gives_the_bits_of_steps_in_a_row(kind, random):
    start = random.choice([0, 2])  # 2, in the middle of an interval of the EMA, is a resume
    steps = 7 if kind == "paper" else 4  # seven use each slot again
    assert in_any_order(kind, start, steps, random) == in_a_row(kind, start + steps)[1]


class Spoiled:
    """A launch that makes a parameter of the first member NaN."""

    name, args = "spoiled", {}

    def __init__(self, param: torch.Tensor):
        self.tensors = self.written = {"param": param}

    def __call__(self) -> None:
        self.tensors["param"][0, 100] = float("nan")


@pytest.mark.parametrize(("net", "bc"), [("actor", True), pytest.param("critic", False, marks=pytest.mark.long)])
@settings(max_examples=1)
@given(random=st.randoms(use_true_random=False))
def test_a_value_that_is_not_finite_is_seen_with_its_step_though_others_run_ahead(net, bc, random):
    found = []
    for order in (lambda launches, _: launches, shuffled):
        state, step = prepared(fused_config(sampling_steps=1, bc=bc, **EVERY_3))
        launches: list[Any] = list(step.of(3))
        spoiled = Spoiled(getattr(state, net).param)
        launches.insert(len(launches) // 3, spoiled)  # between the first step and the second
        for launch in order(launches, random):
            launch()
        found.append(state.first_bad_SQ.tolist())
    assert found[0] == found[1]
    assert min(step for step in found[0][0] if step >= 0) == 1 and set(found[0][1]) == {-1}


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, *EVERY_5])
@settings(max_examples=4)
@given(random=st.randoms(use_true_random=False), start=st.integers(0, 7))
def test_any_order_of_twelve_steps_gives_the_bits_of_steps_in_a_row(kind, random, start):
    assert in_any_order(kind, start, 12, random) == in_a_row(kind, start + 12)[1]


SMALL = Tuning(
    rows=16, turn=64, chain_turn=64, tile=32, tile_rows=16, block=1024, keep=False
)  # several blocks a launch, as on a GPU
# Written tensors of which some bytes are never stored: padding of rows, columns that another launch stores.
PADDED = {"act_ptr", "grad_ptr", "norm_ptr", "metric_ptr"}


RECORDED: dict[str, dict[str, Any]] = {
    "paper": {"sampling_steps": 1},
    "bc": {"bc": True},
    "max-q-backup-bf16": {"precision": "bf16", "max_q_backup": True, "sampling_steps": 1},
}


@pytest.fixture(params=family(RECORDED, quick=["paper"]), scope="module")
def records(request):
    """Return what each launch of a step touched; the batch fills no block."""
    _, step = prepared(fused_config(batch_size=21, **RECORDED[request.param]), SMALL)
    return [recorded(launch) for launch in (*step.launches, step.bind.update("actor", due=False))]


def test_a_launch_touches_what_it_declares_and_nothing_else(records):
    assert [fault for record in records for fault in record.undeclared()] == []
    left = {name for record in records for name in record.launch.written if record.unwritten(name)}
    assert left <= PADDED


def test_no_block_touches_what_another_block_of_its_launch_stores(records):
    assert [fault for record in records for fault in record.races()] == []


@pytest.fixture(scope="module", params=family(["guided", "bc"], quick=["bc"]))
def six_steps(request):
    """Return the launches of six steps, what each waits for, and what each touched."""
    _, step = prepared(fused_config(**(KINDS["paper"] | {"bc": request.param == "bc"})))
    launches = step.of(6)
    return launches, graph.waits(launches), [recorded(launch) for launch in launches]


def test_without_any_of_its_waits_a_launch_touches_what_another_still_uses(six_steps):
    # The control: each wait holds two launches that touch the same bytes, and nothing else holds them in order.
    launches, waiting, records = six_steps
    pairs = [(i, j) for j, own in enumerate(waiting) for i in own]
    names = {(i, j): (launches[i].name, launches[j].name) for i, j in pairs}
    needless = {names[i, j] for i, j in pairs if not conflict(records[i], records[j])}
    # An update writes a norm between the metrics that the advantage writes: the same tensor, other bytes.
    assert needless <= {("gtp_advantage", "gtp_update")}
    assert len(set(names.values())) == (19 if len(launches) == 78 else 10)
    for i, j in pairs:
        without = [[k for k in own if (k, at) != (i, j)] for at, own in enumerate(waiting)]
        assert i not in ends_before(without)[j]


def test_what_depends_on_the_ema_alone_waits_for_its_last_move_and_for_nothing_else(six_steps):
    launches, waiting, _ = six_steps
    before = ends_before(waiting)
    moved = [i for i, launch in enumerate(launches) if launch.name == "gtp_update" and launch.phase == "average"]
    for name in ("gtp_teacher", "gtp_chain"):
        ahead = [i for i, launch in enumerate(launches) if launch.name == name]
        for k, i in enumerate(ahead[1:], start=1):  # the EMA moves after steps 0 and 3
            last_move = moved[(k - 1) // 3 * 3]
            assert last_move in before[i] and before[i] <= before[last_move] | {last_move}


def _heads(**changes) -> Launch:
    _, step = prepared(fused_config(seeds=1, batch_size=40), SMALL)
    launch = step.bind.target_q()
    return replace(launch, args=launch.args | changes)


def test_the_recording_names_a_store_behind_a_tensor():
    memory = torch.zeros(2 * 40 + 16)
    found = recorded(_heads(q_ptr=memory[:80], hidden_ptr=torch.zeros(2, 48, 2 * 256), ROWS=48)).undeclared()
    assert "gtp_heads stores what it does not declare" in found


def test_the_recording_names_a_race_between_the_blocks_of_a_launch():
    _, step = prepared(fused_config(seeds=1, batch_size=40), SMALL)
    launch = step.bind.critic_forward()
    close = replace(launch, args=launch.args | {"COLUMNS": 96})
    assert recorded(launch).races() == []
    assert any("gtp_critic_forward: block (0, 0, 0) stores" in fault for fault in recorded(close).races())


@pytest.mark.parametrize(("changes", "launches", "longest"), [({}, 13, 106), ({"bc": True}, 6, 66)])
def test_twenty_steps_have_so_many_launches_and_so_many_that_wait_for_each_other(changes, launches, longest):
    _, step = prepared(fused_config(seeds=1, ema_every=5, **changes))
    whole = step.of(20)
    assert len(whole) == 20 * launches
    assert len(graph.longest_path(graph.waits(whole))) == longest
