"""The image encoder against a slow float64 one, and what its place in the flat buffers promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gtp_fast.algorithms import fql, gtp, networks, updates
from gtp_fast.algorithms.encoder import FEATURES, encode_obs, encoder_shapes
from gtp_fast.config import TrainConfig

SHAPES = [
    pytest.param((8, 8, 3), id="smallest"),
    pytest.param((13, 10, 6), id="odd"),
    pytest.param((32, 32, 9), id="32"),
]


class Impala(nn.Module):
    """IMPALA-small by the book: modules, float64, flax's SAME padding made by hand."""

    def __init__(self, p: dict[str, Tensor], row: int):
        super().__init__()
        self.convs = [
            [(p[f"eye{i}_{j}.w"][row].double(), p[f"eye{i}_{j}.b"][row, 0].double()) for j in range(3)]
            for i in range(3)
        ]
        self.last = p["eye.w"][row].double(), p["eye.b"][row, 0].double()

    def conv(self, x: Tensor, i: int, j: int) -> Tensor:
        weight, bias = self.convs[i][j]
        inputs, out = x.shape[1], weight.shape[1]
        total = torch.zeros(len(x), out, *x.shape[2:], dtype=torch.float64)
        padded = functional.pad(x, (1, 1, 1, 1))
        for tap in range(9):  # the sum over taps, one at a time
            rows, columns = divmod(tap, 3)
            part = padded[:, :, rows : rows + x.shape[2], columns : columns + x.shape[3]]
            total += torch.einsum("bchw,co->bohw", part, weight[tap * inputs : (tap + 1) * inputs])
        return total + bias[:, None, None]

    def pool(self, x: Tensor) -> Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
            pads += [total // 2, total - total // 2]
        x = functional.pad(x, pads, value=-torch.inf)
        return x.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))

    def forward(self, frames_BHWC: Tensor) -> Tensor:
        x = frames_BHWC.double().permute(0, 3, 1, 2) / 255
        for i in range(3):
            x = self.pool(self.conv(x, i, 0))
            x = x + self.conv(torch.relu(self.conv(torch.relu(x), i, 1)), i, 2)
        x = torch.relu(x).permute(0, 2, 3, 1).flatten(1)
        return functional.gelu(x @ self.last[0] + self.last[1], approximate="tanh")


def _parameters(shape: tuple[int, int, int], seeds: list[int], heads: int = 1) -> dict[str, Tensor]:
    layout = networks.layout_of(encoder_shapes(shape))
    return networks.views(networks.init_flat(layout, seeds, heads=heads), layout)


def _frames(*size: int) -> Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_those_of_the_slow_encoder(shape):
    p, frames = _parameters(shape, [0, 1]), _frames(2, 5, *shape)
    found = encode_obs(p, frames)
    assert found.shape == (2, 5, FEATURES)
    for member in range(2):
        assert (found[member].double() - Impala(p, member)(frames[member])).abs().max() < 1e-5  # values of about 0.1


def test_gradients_are_those_of_the_slow_encoder_and_stay_with_their_member():
    shape = (9, 8, 3)
    p = {name: value.double().requires_grad_() for name, value in _parameters(shape, [0, 1]).items()}
    frames, weight = _frames(2, 4, *shape), torch.randn(2, 4, FEATURES, dtype=torch.float64)
    ours = torch.autograd.grad((encode_obs(p, frames) * weight)[1].sum(), list(p.values()))
    slow = torch.autograd.grad((Impala(p, 1)(frames[1]) * weight[1]).sum(), list(p.values()))
    for name, found, expected in zip(p, ours, slow, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), name
        assert not found[0].any() and found[1].any(), name


def test_a_member_among_others_sees_what_it_sees_alone():
    shape = (16, 16, 3)
    frames = _frames(3, 4, *shape)
    together, alone = encode_obs(_parameters(shape, [4, 5, 6]), frames), encode_obs(_parameters(shape, [6]), frames[2:])
    assert torch.equal(together[2:], alone)


def test_both_heads_of_a_critic_see_by_the_first():
    shape = (8, 8, 3)
    p, frames = _parameters(shape, [0, 1], heads=2), _frames(2, 4, *shape)
    before = encode_obs(p, frames)
    for value in p.values():
        value[1::2] = torch.nan
    assert torch.equal(encode_obs(p, frames), before)


def test_numbers_are_given_as_they_are():
    obs = torch.randn(2, 4, 5)
    assert encode_obs({}, obs) is obs
    assert encoder_shapes(5) == {}


def test_a_run_counts_the_encoder_of_its_critic_once():
    cfg, shape = TrainConfig(env="x", hidden=16), (64, 64, 9)
    eye = 9 * (9 * 16 + 2 * 16 * 16 + 16 * 32 + 5 * 32 * 32) + 3 * 16 + 6 * 32 + 8 * 8 * 32 * 512 + 512
    flat = updates.parameter_count(cfg, gtp.layouts(cfg, FEATURES, 2))
    assert updates.parameter_count(cfg, gtp.layouts(cfg, shape, 2)) == flat + 2 * eye
    flow = updates.parameter_count(cfg, fql.layouts(cfg, FEATURES, 2))
    assert updates.parameter_count(cfg, fql.layouts(cfg, shape, 2)) == flow + 3 * eye  # the flow has one of its own
