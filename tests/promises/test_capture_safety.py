"""What `capture_safety` must see: `test_algorithms.py` holds every step to it, and here are its faults."""

from __future__ import annotations

import pytest
import torch
from capture_safety import problems_of
from learn_cases import buffer_of, case, fresh

from gtp_fast.algorithms import gtp


def test_the_schedule_moves_without_changing_the_trace():
    cfg = case("gtp", steps=16)
    state = fresh(cfg)
    step = gtp.make_step(cfg, state, buffer_of(cfg))

    def stage_by_stage() -> None:
        step()
        state.step.add_(1)  # two steps further: another stage of N(k) each time

    assert problems_of(stage_by_stage, state.tensors, steps=6) == []


class _Faulty:
    """A step of one fault: what the checks must be able to see."""

    def __init__(self) -> None:
        self.param, self.count = torch.ones(4), 0

    def host_read(self) -> None:
        self.param.mul_(self.param.sum().item())

    def branch_on_a_tensor(self) -> None:
        if self.param.sum() > 0:
            self.param.add_(1)

    def mask_index(self) -> None:
        self.param[self.param > 0] = 1.0

    def host_data(self) -> None:
        self.param.add_(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def rebound(self) -> None:
        self.param = self.param * 0.5

    def every_second_step(self) -> None:
        self.count += 1
        if self.count % 2:
            self.param.mul_(0.5)

    def python_learning_rate(self) -> None:
        self.count += 1
        self.param.mul_(1.0 / self.count)

    def torch_generator(self) -> None:
        self.param.add_(torch.rand(4))


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("host_read", "host read"),
        ("branch_on_a_tensor", "host read"),
        ("mask_index", "index by a mask"),
        ("host_data", "data made on the host"),
        ("rebound", "storage rebound"),
        ("every_second_step", "change from step to step"),
        ("python_learning_rate", "change from step to step"),
        ("torch_generator", "torch's generator"),
    ],
)
def test_each_fault_is_seen(fault, seen):
    faulty = _Faulty()
    found = problems_of(getattr(faulty, fault), lambda: {"param": faulty.param})
    assert any(seen in problem for problem in found), found


def test_a_host_tensor_in_the_step_is_seen():
    on_device, on_host = torch.ones(4, device="meta"), torch.tensor(0.5)
    assert problems_of(lambda: on_device.mul_(on_host), dict, steps=1) == ["host tensor mixed in: aten::mul_"]
