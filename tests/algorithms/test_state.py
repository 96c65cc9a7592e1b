"""TrainState loads in place or not at all, and its digest sees every bit."""

from __future__ import annotations

import pytest
import torch
from learn_cases import fresh, small_config

from gtp_fast.errors import CheckpointError


@pytest.fixture
def state():
    return fresh(small_config())


def test_loading_keeps_addresses_and_restores_every_bit(state):
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    digest, addresses = state.digest(), [tensor.data_ptr() for tensor in state.tensors().values()]
    for tensor in state.tensors().values():
        tensor.add_(1)
    assert state.digest() != digest
    state.load_(saved)
    assert state.digest() == digest and [t.data_ptr() for t in state.tensors().values()] == addresses


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype"])
def test_a_foreign_state_is_refused_and_nothing_changes(state, fault):
    digest = state.digest()
    foreign = {name: tensor.clone() + 1 for name, tensor in state.tensors().items()}
    if fault == "missing":
        del foreign["step"]
    elif fault == "extra":
        foreign["other"] = torch.zeros(1)
    elif fault == "shape":
        foreign["actor.param"] = foreign["actor.param"][:, :-1]
    else:
        foreign["actor.slow"] = foreign["actor.slow"].double()
    with pytest.raises(CheckpointError, match="resume"):
        state.load_(foreign)
    assert state.digest() == digest


def test_one_bit_changes_the_digest(state):
    digest = state.digest()
    state.actor.ema.view(torch.int32)[0, 5] ^= 1
    assert state.digest() != digest
