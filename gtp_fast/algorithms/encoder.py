"""The input of a network: vectors unchanged, frames through the encoder of the FQL setting.

IMPALA-small [FQL, OGBench]: three stacks of 16, 32 and 32 channels, each a 3x3 convolution, a 3x3 maximum of stride 2
and one residual block (ReLU, convolution, ReLU, convolution); then ReLU and a layer of 512 with tanh-GELU. Pixels enter
as x / 255. One difference: weights and biases start as torch's Conv2d and Linear do, not Glorot and zero.

The parameters are entries of a network's flat buffer like any other: a convolution is (9 in, out), taps before inputs.
Both heads of a critic share the first head's encoder, as in FQL; the second head's is never read.

Legend: S members, M = S heads rows of parameters, B batch rows, H x W pixels of C channels, D features or numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gtp_fast.data.spec import ObsShape

STACKS = (16, 32, 32)  # channels
FEATURES = 512
CONVOLUTIONS = 3  # of a stack: into it, and two of its residual block
EYE = "eye"  # prefix of the encoder's parameter names


def input_width(obs: ObsShape) -> int:
    """Return the width of an encoded observation."""
    return obs if isinstance(obs, int) else FEATURES


def encoder_shapes(obs: ObsShape, prefix: str = "") -> dict[str, tuple[int, int]]:
    """Return the shapes of an encoder's parameters by name; none for vectors."""
    if isinstance(obs, int):
        return {}
    height, width, channels = obs
    sizes: dict[str, tuple[int, int]] = {}
    for i, out in enumerate(STACKS):
        height, width = (height + 1) // 2, (width + 1) // 2
        for j in range(CONVOLUTIONS):
            sizes[f"{EYE}{i}_{j}"] = (9 * (channels if j == 0 else out), out)
        channels = out
    sizes[EYE] = (height * width * channels, FEATURES)
    weights = {f"{prefix}{name}.w": size for name, size in sizes.items()}
    return weights | {f"{prefix}{name}.b": (1, out) for name, (_, out) in sizes.items()}


def encode_obs(p: dict[str, Tensor], obs_SBX: Tensor, prefix: str = "") -> Tensor:
    """Return features (S, B, 512) of frames (S, B, H, W, C) in [0, 255]; return vectors (S, B, D) unchanged.

    p holds M rows; a member's first row is its encoder. Members are encoded one after another. A grouped convolution
    takes a fifth longer (143 against 118 ms forward and backward for 2 x 64 frames of 64 x 64 x 9, channels last, one
    core of Zen 5, 2026-11-21), and this way a member has the same numbers alone and among others.
    """
    if obs_SBX.ndim == 3:
        return obs_SBX
    heads = p[f"{prefix}{EYE}.w"].shape[0] // obs_SBX.shape[0]
    flat_SBI = torch.stack([_convolve(p, prefix, s * heads, frames) for s, frames in enumerate(obs_SBX)])
    weight, bias = p[f"{prefix}{EYE}.w"][::heads], p[f"{prefix}{EYE}.b"][::heads]
    return functional.gelu(torch.baddbmm(bias, flat_SBI, weight), approximate="tanh")


def _convolve(p: dict[str, Tensor], prefix: str, row: int, frames_BHWC: Tensor) -> Tensor:
    """Run the stacks of one row of parameters on frames; return (B, H' W' channels).

    A permuted (B, H, W, C) is in channels-last format, in which these convolutions take half the time.
    """
    x = (frames_BHWC.to(p[f"{prefix}{EYE}.w"].dtype) / 255.0).permute(0, 3, 1, 2)
    for i in range(len(STACKS)):
        layers = [
            (p[f"{prefix}{EYE}{i}_{j}.w"][row], p[f"{prefix}{EYE}{i}_{j}.b"][row, 0]) for j in range(CONVOLUTIONS)
        ]
        x = _halve(_convolution(x, *layers[0]))
        x = x + _convolution(_convolution(x.relu(), *layers[1]).relu(), *layers[2])
    return x.relu().permute(0, 2, 3, 1).flatten(1)


def _convolution(x_BCHW: Tensor, weight_IO: Tensor, bias_O: Tensor) -> Tensor:
    taps = weight_IO.view(3, 3, x_BCHW.shape[1], -1).permute(3, 2, 0, 1)
    return functional.conv2d(x_BCHW, taps, bias_O, padding=1)


def _halve(x_BCHW: Tensor) -> Tensor:
    """Take the 3x3 maximum with stride 2; odd sizes are padded on both sides, even ones behind, as in flax."""
    height, width = x_BCHW.shape[-2:]
    return functional.max_pool2d(x_BCHW, 3, 2, padding=(height % 2, width % 2), ceil_mode=True)
