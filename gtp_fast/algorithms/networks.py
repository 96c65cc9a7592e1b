"""The networks: F of the actor's phi, the twin critic, and V, as pure functions on views of a flat buffer.

Legend: S members (seeds), M rows of a parameter buffer (S for actor and V, 2 S for the critic), B batch rows, D
observation, A action, H hidden, E = 16 width of a time embedding. Weights are (M, in, out). Runs use
float32; the functions keep the dtype of their inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gtp_kernels.primitives import mish, philox4x32, uniform_from_bits
from torch import Tensor

from gtp_fast.algorithms.encoder import encoder_shapes, input_width
from gtp_fast.data.spec import ObsShape
from gtp_fast.rng import INIT, seed_keys

TIME_WIDTH, TIME_HIDDEN = 16, 32
HIDDEN_LAYERS = 3
GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
GELU_CUBE = 0.044715 * GELU_SLOPE
FIXED_STARTS = {"gain": 1.0, "shift": 0.0, "log_std": 0.0}  # a LayerNorm starts as none, a Gaussian as a standard one
ALIGN = 32  # floats: every tensor of a flat buffer starts on a 128-byte line, as vector loads and TMA want it


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in one row of a flat buffer: name -> (offset, shape); `size` floats in all."""

    entries: tuple[tuple[str, int, tuple[int, ...]], ...]
    size: int

    @property
    def parameters(self) -> int:
        """Number of parameters of one member, without the padding between tensors."""
        return sum(math.prod(shape) for _, _, shape in self.entries)

    @property
    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Offset and shape of each parameter, by name."""
        return {name: (offset, shape) for name, offset, shape in self.entries}


def dense_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
    """Return the parameters of one `dense` layer by name: weight and bias."""
    return {f"{name}.w": (inputs, outputs), f"{name}.b": (1, outputs)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, int]]:
    """Return the parameters of one LayerNorm by name: gain, which starts at one, and shift, at zero."""
    return {f"{name}.gain": (1, width), f"{name}.shift": (1, width)}


def layout_of(shapes: dict[str, tuple[int, int]]) -> Layout:
    """Lay parameters out one after another, each from an aligned offset."""
    entries, offset = [], 0
    for name, shape in shapes.items():
        entries.append((name, offset, shape))
        offset += -(-math.prod(shape) // ALIGN) * ALIGN
    return Layout(tuple(entries), offset)


def _layout(layers: list[tuple[str, int, int]], obs: ObsShape) -> Layout:
    shapes = {name: shape for layer in layers for name, shape in dense_shapes(*layer).items()}
    return layout_of(shapes | encoder_shapes(obs))


def _mlp(inputs: int, hidden: int, outputs: int) -> list[tuple[str, int, int]]:
    widths = [inputs, *[hidden] * HIDDEN_LAYERS, outputs]
    return [(f"mlp{i}", widths[i], widths[i + 1]) for i in range(HIDDEN_LAYERS + 1)]


def actor_layout(obs: ObsShape, action_dim: int, hidden: int) -> Layout:
    """Return the layout of F: input [c_in a_t, e_t, e_s, o], two time embeddings, three hidden layers, an action."""
    times = [(f"{name}{i}", *width) for name in ("t", "s") for i, width in enumerate(((16, 32), (32, 16)))]
    return _layout(times + _mlp(action_dim + 2 * TIME_WIDTH + input_width(obs), hidden, action_dim), obs)


def noise_layout(obs: ObsShape, action_dim: int, hidden: int) -> Layout:
    """Return the layout of a network of one time: input [a_t, e_t, o], one time embedding, three hidden layers."""
    times = [("t0", TIME_WIDTH, TIME_HIDDEN), ("t1", TIME_HIDDEN, TIME_WIDTH)]
    return _layout(times + _mlp(action_dim + TIME_WIDTH + input_width(obs), hidden, action_dim), obs)


def critic_layout(obs: ObsShape, action_dim: int, hidden: int) -> Layout:
    """Return the layout of one head of the critic: input [o, a], three hidden layers, one value."""
    return _layout(_mlp(input_width(obs) + action_dim, hidden, 1), obs)


def value_layout(obs: ObsShape, hidden: int) -> Layout:
    """Return the layout of V: input o, three hidden layers, one value."""
    return _layout(_mlp(input_width(obs), hidden, 1), obs)


def policy_layout(obs: ObsShape, action_dim: int, hidden: int, gaussian: bool = False) -> Layout:
    """Return the layout of a mean: input o, three hidden layers, an action; of a Gaussian with a log-std beside it."""
    layers = [dense_shapes(*layer) for layer in _mlp(input_width(obs), hidden, action_dim)]
    shapes = {name: shape for layer in layers for name, shape in layer.items()}
    return layout_of(shapes | ({"policy.log_std": (1, action_dim)} if gaussian else {}) | encoder_shapes(obs))


def views(flat_MP: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return each parameter as a view (M, in, out) or (M, 1, out) of the flat buffer (M, layout.size)."""
    members = flat_MP.shape[0]
    return {
        name: flat_MP[:, offset : offset + math.prod(shape)].view(members, *shape)
        for name, offset, shape in layout.entries
    }


def flat(parts: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return one tensor a parameter, each (M, in, out), as a flat buffer (M, layout.size), padding zero.

    One concatenation, because a compiled step then writes each part to its place. Assigning to views of a zeroed buffer
    made it look up for every element which parameter it belongs to.
    """
    pieces: list[Tensor] = []
    ends = [offset for _, offset, _ in layout.entries[1:]] + [layout.size]
    for part, (_, offset, shape), end in zip(parts, layout.entries, ends, strict=True):
        padding = end - offset - math.prod(shape)
        pieces.append(part.reshape(part.shape[0], -1))
        if padding:
            pieces.append(part.new_zeros(part.shape[0], padding))
    return torch.cat(pieces, dim=1)


def init_flat(layout: Layout, seeds: list[int], heads: int = 1, network: int = 0) -> Tensor:
    """Return fresh parameters, float32 (S * heads, size) on the CPU: U(-1/sqrt(in), 1/sqrt(in)), padding zero.

    This is the default of torch's Linear; gains start at one and shifts at zero, as in its LayerNorm. They depend
    on the member's seed, head and network alone.
    """
    counters = -(-layout.size // 4)
    flat = torch.zeros(len(seeds) * heads, layout.size)
    keys = seed_keys(seeds, "cpu").repeat_interleave(heads, 0)
    head = torch.arange(heads).repeat(len(seeds))[:, None]
    element = torch.arange(counters)[None]
    drawn = philox4x32(element, torch.full_like(element, INIT), head, torch.tensor(network), keys[:, :1], keys[:, 1:])
    uniform = uniform_from_bits(torch.stack(drawn, -1)).reshape(len(flat), -1) * 2.0 - 1.0
    places = layout.places
    for name, (offset, shape) in places.items():
        layer, kind = name.rsplit(".", 1)
        part = slice(offset, offset + math.prod(shape))
        if kind in FIXED_STARTS:
            flat[:, part] = FIXED_STARTS[kind]
        else:
            _, (fan_in, _) = places[f"{layer}.w"]
            flat[:, part] = uniform[:, part] / math.sqrt(fan_in)
    return flat


def dense(p: dict[str, Tensor], name: str, x_MBI: Tensor) -> Tensor:
    """Return x W + b of every row of parameters, (M, B, out)."""
    return torch.baddbmm(p[name + ".b"], x_MBI, p[name + ".w"])


def gelu(x: Tensor) -> Tensor:
    """Return GELU's tanh form, x (1 + tanh u) / 2 = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).

    By the sigmoid a compiled step takes one exponential, in a third of the time of its tanh (62 against 197 us for
    256 x 512; Zen 5, 2026-11-21).
    """
    return x * torch.sigmoid(x * (GELU_SLOPE + GELU_CUBE * x * x))


def mlp_tail(p: dict[str, Tensor], h_MBH: Tensor) -> Tensor:
    """Run the network from the first hidden pre-activation (M, B, H) to the output."""
    for i in range(1, HIDDEN_LAYERS + 1):
        h_MBH = dense(p, f"mlp{i}", mish(h_MBH))
    return h_MBH


def time_embedding(p: dict[str, Tensor], name: str, time_SB: Tensor, sigma_min: float) -> Tensor:
    """Embed noise levels: sinusoids of 0.25 ln t, then Linear, Mish, Linear; (S, B) -> (S, B, E).

    `name` is "t" or "s". Times below sigma_min, which stands for 0, are embedded as sigma_min.
    """
    return _embed(p, name, 0.25 * time_SB.clamp(min=sigma_min).log())


def step_embeddings(p: dict[str, Tensor], steps: int) -> Tensor:
    """Embed the numbers 0 .. steps - 1 of a diffusion's steps, (S, steps, E), by the network "t"."""
    weight = p["t0.w"]
    numbers = torch.arange(steps, dtype=weight.dtype, device=weight.device)
    return _embed(p, "t", numbers.expand(weight.shape[0], -1))


def _embed(p: dict[str, Tensor], name: str, phase_SB: Tensor) -> Tensor:
    index = torch.arange(TIME_WIDTH // 2, dtype=phase_SB.dtype, device=phase_SB.device)
    frequency = torch.exp(index * (-math.log(10_000.0) / (TIME_WIDTH // 2 - 1)))
    angle = phase_SB[..., None] * frequency
    sinusoids = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return dense(p, name + "1", mish(dense(p, name + "0", sinusoids)))


def actor_network(
    p: dict[str, Tensor], x_SBA: Tensor, t_SB: Tensor, s_SB: Tensor, obs_SBD: Tensor, sigma_min: float
) -> Tensor:
    """Return F(c_in(t) a_t, emb(t), emb(s), o), (S, B, A); x_SBA is already scaled by c_in."""
    e_t, e_s = time_embedding(p, "t", t_SB, sigma_min), time_embedding(p, "s", s_SB, sigma_min)
    return mlp_tail(p, dense(p, "mlp0", torch.cat([x_SBA, e_t, e_s, obs_SBD], dim=-1)))


def q_values(p: dict[str, Tensor], obs_SBD: Tensor, action_SBA: Tensor) -> Tensor:
    """Return both heads' values, (S, 2, B), of observations (S, B, D) and actions (S, B, A)."""
    x_SBI = torch.cat([obs_SBD, action_SBA], dim=-1)
    x_MBI = x_SBI.repeat_interleave(2, dim=0)
    return mlp_tail(p, dense(p, "mlp0", x_MBI)).view(x_SBI.shape[0], 2, x_SBI.shape[1])


def state_values(p: dict[str, Tensor], obs_SBD: Tensor) -> Tensor:
    """Return V(o), (S, B), of observations (S, B, D)."""
    return mlp_tail(p, dense(p, "mlp0", obs_SBD)).squeeze(-1)


def mean_actions(p: dict[str, Tensor], obs_SBD: Tensor) -> Tensor:
    """Return a deterministic policy's actions, or a Gaussian's means, tanh of the network, (S, B, A)."""
    return mlp_tail(p, dense(p, "mlp0", obs_SBD)).tanh()
