"""Offsets of 2^31 elements and more: each kernel finds its member's rows behind that many of the member before.

Each launch of a small step is made again as if its batch had MANY rows, on tensors that only seem to be there: files
full of holes. Of each member the first or the last block of rows runs. The interpreter fails where an integer
overflows, and what is written must lie where the member's rows begin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from gtp_kernels import primitives
from gtp_kernels.launch import LARGEST_OFFSET, Launch, tuned_for
from kernel_cases import Case
from places import ROOT
from torch import Tensor
from triton.runtime import interpreter

from gtp_fast import rng
from gtp_fast.algorithms import fused
from gtp_fast.errors import UsageError

BATCH, MANY = 16, 1 << 26  # rows; one of the narrowest scratch, that of a chain at width 32, has 64 numbers
SCALE = MANY // BATCH
ROWS = ("BATCH", "NEXT", "ROWS", "FROM_BATCH", "WRAP", "obs_rows", "action_rows")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory has no holes")
Make = Callable[[int, torch.dtype], Tensor]


@pytest.fixture
def virtual(tmp_path: Path) -> Make:
    """Return what makes a tensor of zeros that takes memory only where it is written."""
    number = count()

    def make(size: int, dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(tmp_path / str(next(number))), shared=True, size=size, dtype=dtype)

    return make


@pytest.fixture(scope="module")
def case() -> Case:
    """Return a small step that was made once, so that each of its tensors holds something."""
    made = Case((5, 3, BATCH))
    for launch in made.bind.step():
        launch()
    return made


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor's storage, flat."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())


def enlarged(launch: Launch, leads: dict[str, int], virtual: Make) -> tuple[Launch, dict[str, Tensor]]:
    """Return the launch with MANY rows in place of BATCH, and its tensors of rows.

    Args: leads, how many blocks of rows a tensor holds, one for each member or for each of its heads. Each block begins
    with the small one's rows.
    """
    args, large = dict(launch.args), {}
    for name, lead in leads.items():
        small = whole(args[name]).view(lead, -1)
        large[name] = virtual(small.numel() * SCALE, small.dtype).view(lead, -1)
        large[name][:, : small.shape[1]] = small
        args[name] = large[name].view(-1)[args[name].storage_offset() :]
    args |= {name: args[name] * SCALE for name in ROWS if name in args}
    return replace(launch, args=args, grid=(1, *launch.grid[1:])), large


# Launch, blocks of rows in each tensor for 2 members, and the tensors in which the first rows do not depend on how many
# others there are, with the share of them that the small launch's first block writes.
LAUNCHES = {
    "teacher": ({"target_ptr": 2, "hidden_ptr": 2}, {"target_ptr": 1, "hidden_ptr": 1}),
    "actor": ({"target_ptr": 2, "act_ptr": 2, "slope_ptr": 2, "loss_ptr": 4}, {"slope_ptr": 2}),
    "chain": ({"action_ptr": 2, "batch_ptr": 2, "hidden_ptr": 2}, {"action_ptr": 2, "batch_ptr": 1, "hidden_ptr": 2}),
    "target_q": ({"obs_ptr": 2, "action_ptr": 2, "q_ptr": 4, "hidden_ptr": 4}, {"q_ptr": 1, "hidden_ptr": 1}),
    "critic_forward": (
        {"batch_ptr": 2, "act_ptr": 4, "slope_ptr": 4, "q_ptr": 4},
        {"act_ptr": 1, "slope_ptr": 1, "q_ptr": 1},
    ),
    "critic_backward": (
        {"batch_ptr": 2, "next_q_ptr": 4, "q_ptr": 4, "act_ptr": 4, "slope_ptr": 4, "target_ptr": 2},
        {"target_ptr": 1},
    ),
    "advantage_q": (
        {"obs_ptr": 2, "batch_action_ptr": 2, "action_ptr": 2, "q_ptr": 4, "hidden_ptr": 4},
        {"q_ptr": 2, "hidden_ptr": 2},
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_of_very_many_rows_writes_where_each_members_rows_begin(case: Case, name: str, virtual: Make):
    leads, compared = LAUNCHES[name]
    small: Launch = getattr(case.bind, name)()
    large, tensors = enlarged(small, leads, virtual)
    assert any(tensor.shape[1] > LARGEST_OFFSET for tensor in tensors.values())
    small()
    expected = {key: whole(small.args[key]).view(leads[key], -1).clone() for key in compared}
    large()
    for key, share in compared.items():
        rows = expected[key].shape[1] // share
        assert torch.equal(tensors[key][:, :rows], expected[key][:, :rows]) and expected[key][:, :rows].any(), key


def _shifted(setter: Callable[..., None], last: int, x: int, y: int, z: int) -> None:
    setter(x + last, y, z)


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_last_of_very_many_rows_are_written_behind_all_others(case: Case, name: str, virtual: Make, monkeypatch):
    launch, tensors = enlarged(getattr(case.bind, name)(), LAUNCHES[name][0], virtual)
    if "batch_ptr" in tensors:
        tensors["batch_ptr"][:, -64:] = 1.0  # rewards, for the targets
    rows = launch.args["BATCH"] if name not in ("chain", "target_q", "advantage_q") else launch.args["ROWS"]
    last = (rows * (2 if name == "actor" else 1) - 1) // launch.args["BM"]
    builder = interpreter.interpreter_builder
    for setter in ("set_grid_dim", "set_grid_idx"):  # the launch's one block of rows becomes the last
        monkeypatch.setattr(builder, setter, partial(_shifted, getattr(builder, setter), last))
    launch()
    written = [key for key in ("hidden_ptr", "slope_ptr", "target_ptr") if key in launch.written]
    assert written and all(tensors[key][:, -1].any() for key in written)


def test_rows_of_a_replay_buffer_of_2_to_the_31_numbers_are_read(virtual: Make):
    case = Case((5, 3, BATCH))
    launch, size = case.bind.chain(), 1 << 28
    width = case.buffer.rows.shape[1]
    assert size * width > 2**31
    rows = virtual(size * width, torch.float32).view(size, width)
    index = primitives.integer_below(case.words[rng.INDEX][..., 0], size)
    assert (index * width > 2**31).any()
    rows[index] = torch.arange(2.0 * BATCH * width).view(2, BATCH, width)
    replace(launch, args=launch.args | {"rows_ptr": rows, "size": size})()
    assert torch.equal(launch.args["batch_ptr"].flatten(), torch.arange(2.0 * BATCH * width))


def test_gradients_of_kept_rows_of_2_to_the_31_numbers_are_of_the_right_member(virtual: Make):
    case = Case((5, 3, BATCH), replace(tuned_for(32, BATCH, 0), tile_rows=BATCH))
    launch = case.bind.gradients("critic")
    rows, narrow = launch.args["ROWS"], launch.args["COLUMNS"]
    columns = (LARGEST_OFFSET - 1) // BATCH  # a head's own offsets fit; that of the last of four heads does not
    acts = virtual(4 * rows * columns, torch.float32).view(4, rows, columns)
    acts[:, :, :narrow] = torch.randn(4, rows, narrow, generator=torch.Generator().manual_seed(0))
    small = launch.args | {"act_ptr": acts[:, :, :narrow].contiguous()}
    replace(launch, args=small)()
    expected = launch.args["grad_ptr"].clone()
    launch.args["grad_ptr"].zero_()
    replace(launch, args=launch.args | {"act_ptr": acts, "COLUMNS": columns})()
    assert torch.equal(launch.args["grad_ptr"], expected) and expected.any()


@pytest.mark.parametrize("path", sorted((ROOT / "kernels" / "gtp_kernels").glob("*.py")), ids=lambda path: path.stem)
def test_every_kernel_takes_its_member_in_64_bits(path: Path):
    # The members stand last in a grid. Not every launch is made with very many rows above.
    for kernel in re.findall(r"^def gtp_.*?(?=^def |\Z)", path.read_text(), re.MULTILINE | re.DOTALL):
        axes = re.findall(r"(wide\()?tl\.program_id\((\d)\)", kernel)
        assert all(wide for wide, axis in axes if axis == max(axis for _, axis in axes)), kernel.splitlines()[0]


@pytest.mark.parametrize("batch", [4_000_000, 10_000_000])
def test_a_batch_whose_kept_rows_cannot_be_addressed_is_refused_before_memory_is_taken(batch: int):
    case = Case((5, 3, BATCH))
    with pytest.raises(UsageError) as error:
        fused.make_step(replace(case.cfg, batch_size=batch), case.state, case.buffer)
    said = str(error.value)
    assert said.startswith(f"--batch-size {batch}: the fused step keeps {2 * batch:,} rows of ")
    most = int(said.partition("pass --batch-size ")[2].split()[0])
    fused._check_sizes(replace(case.cfg, batch_size=most), case.buffer, case.bind.shapes)
    with pytest.raises(UsageError):
        fused._check_sizes(
            replace(case.cfg, batch_size=most + case.bind.shapes.tile_rows), case.buffer, case.bind.shapes
        )


def test_more_transitions_than_a_draw_can_choose_among_are_refused():
    case = Case((5, 3, BATCH))
    rows = torch.empty(2**31, case.buffer.rows.shape[1], device="meta")
    with pytest.raises(UsageError, match="2,147,483,648 transitions, and the fused step draws among fewer than 2\\^31"):
        fused.make_step(case.cfg, case.state, replace(case.buffer, rows=rows))
