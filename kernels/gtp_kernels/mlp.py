"""The networks inside a kernel: operands and products, Mish, time embeddings, the hidden layers there and back.

A block of ROWS rows passes through a whole network on the chip. The two hidden layers run as one loop over blocks j of
BN hidden units, acc += mish(h0 W1[:, j] + b1[j]) W2[j, :], so a block holds neither weight whole. It reads each weight
once, and writes only what the weight gradients need: h1 and dL/dz1 here, the rest in the kernels.

Weights are (in, out), row-major. PREC says what the operands of the hidden layers' products are: "fp32", "tf32" or
"bf16". Sums are always float32. The thin layers (first, last, time networks) use "tf32" where PREC is "bf16". INTERP is
set under TRITON_INTERPRET=1: the interpreter has no bf16 arithmetic and does not round operands, so the code there
rounds float32 bits.

A GPU's plain minimum and maximum drop NaN. Every one of floats here passes NaN on, because a NaN must reach the
metrics; `tests/kernels/test_aot.py` checks the compiled code.
"""

import triton
import triton.language as tl

from gtp_kernels import launch, primitives
from gtp_kernels.draws import cos_sin

# A kernel reads a module's global only if it is a tl.constexpr.
MISH_CLAMP = tl.constexpr(primitives.MISH_CLAMP)
TIME_WIDTH = tl.constexpr(launch.TIME_WIDTH)
TIME_HIDDEN = tl.constexpr(launch.TIME_HIDDEN)
EMBEDDINGS = tl.constexpr(2 * launch.TIME_WIDTH)  # columns of e_t and e_s side by side
# Offsets in a row of the actor's buffer: Linear(16, 32) and Linear(32, 16) of t, then those of s. Each tensor begins at
# a multiple of 32 floats.
TIME_W1 = tl.constexpr(launch.TIME_WIDTH * launch.TIME_HIDDEN + launch.TIME_HIDDEN)
TIME_B1 = tl.constexpr(TIME_W1.value + launch.TIME_HIDDEN * launch.TIME_WIDTH)
TIME_NET = tl.constexpr(TIME_B1.value + 32)  # the 16 biases, padded
TIME_NETS = tl.constexpr(2 * TIME_NET.value)
CHUNK = tl.constexpr(32)  # columns of one load where a row has any number of them


@triton.jit
def larger(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def operand(x, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Round float32 to a product's operand: bf16 to nearest even, tf32 to nearest (the hardware truncates)."""
    if PREC == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)
    if PREC == "bf16":
        x = _bf16_bits(x) if INTERP else x.to(tl.bfloat16)
    return x


@triton.jit
def _bf16_bits(x):
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, acc, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + a b in float32 for operands already rounded."""
    if INTERP:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif PREC == "tf32":
        acc = tl.dot(a, b, acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def edge_product(a, b, acc, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + a b for a thin layer, operands float32 and not yet rounded."""
    EDGE: tl.constexpr = "fp32" if PREC == "fp32" else "tf32"
    return product(operand(a, EDGE, INTERP), operand(b, EDGE, INTERP), acc, EDGE, INTERP)


@triton.jit
def save(pointer, x, mask, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Store float32 x as an operand of the weight gradients' products."""
    tl.store(pointer, operand(x, PREC, INTERP).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def mish(x):
    """Mish with one exponential: e = exp(min(x, 20)), n = e (e + 2), mish = x n / (n + 2)."""
    e = tl.exp(smaller(x, MISH_CLAMP))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@triton.jit
def mish_and_slope(x):
    """Return mish(x) and its derivative: with m = 1 + e + e^2/2 it is (1 - 1/m) + x e (e + 1) / m^2."""
    e = tl.exp(smaller(x, MISH_CLAMP))
    n = 0.5 * e * e + e
    inverse = 1.0 / (n + 1.0)
    share = n * inverse
    return x * share, share + x * (e * e + e) * inverse * inverse


@triton.jit
def pointers(w0, INPUTS: tl.constexpr, H: tl.constexpr):
    """Return pointers to b0, b1, b2 and the last weight, given that to the first weight and its INPUTS rows.

    The hidden weights lie between the biases. Products read them through each kernel's own `w1_ptr` and `w2_ptr`.
    """
    b0 = w0 + INPUTS * H
    b1 = b0 + H + H * H
    b2 = b1 + H + H * H
    return b0, b1, b2, b2 + H


@triton.jit
def sinusoids(time, sigma_min):
    """Return sin and cos of 0.25 ln t at eight frequencies, (ROWS, 16), with t at least sigma_min."""
    i = tl.arange(0, TIME_WIDTH)
    frequency = tl.exp((i % 8).to(tl.float32) * -1.3157629102823121)  # -ln(10000) / 7
    time = larger(time, sigma_min)
    angle = (0.25 * tl.log(time))[:, None] * frequency[None, :]
    cos, sin = cos_sin(angle * 0.15915494309189535)  # 1 / (2 pi)
    return tl.where((i < 8)[None, :], sin, cos)


@triton.jit
def time_hidden(net, features, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return the pre-activation (ROWS, 32) of a time network whose parameters begin at `net`."""
    i, j = tl.arange(0, TIME_WIDTH), tl.arange(0, TIME_HIDDEN)
    weight = tl.load(net + i[:, None] * TIME_HIDDEN + j[None, :])
    bias = tl.load(net + TIME_WIDTH * TIME_HIDDEN + j)
    acc = tl.zeros((features.shape[0], TIME_HIDDEN), tl.float32) + bias[None, :]
    return edge_product(features, weight, acc, PREC, INTERP)


@triton.jit
def time_output(nets, hidden_t, hidden_s, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return both embeddings side by side, (ROWS, 32), from the activated hidden layers: e_t, then e_s."""
    i, j = tl.arange(0, TIME_HIDDEN), tl.arange(0, EMBEDDINGS)
    of_t = (j < TIME_WIDTH)[None, :]
    weight, bias = nets + TIME_W1 + i[:, None] * TIME_WIDTH, nets + TIME_B1
    tile_t = tl.load(weight + j[None, :], mask=of_t, other=0.0)
    tile_s = tl.load(weight + TIME_NET - TIME_WIDTH + j[None, :], mask=of_t == 0, other=0.0)
    bias = tl.load(bias + tl.where(j < TIME_WIDTH, j, TIME_NET - TIME_WIDTH + j))
    acc = tl.zeros((hidden_t.shape[0], EMBEDDINGS), tl.float32) + bias[None, :]
    return edge_product(hidden_s, tile_s, edge_product(hidden_t, tile_t, acc, PREC, INTERP), PREC, INTERP)


@triton.jit
def time_embeddings(nets, t, s, sigma_min, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Embed noise levels t and s, (ROWS,) each, into (ROWS, 32): sinusoids, Linear, Mish, Linear for each."""
    hidden_t = mish(time_hidden(nets, sinusoids(t, sigma_min), PREC, INTERP))
    hidden_s = mish(time_hidden(nets + TIME_NET, sinusoids(s, sigma_min), PREC, INTERP))
    return time_output(nets, hidden_t, hidden_s, PREC, INTERP)


@triton.jit
def add_columns(acc, x, weight, COUNT: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + x weight over the first COUNT columns of x; weight points at the first of its rows, (COUNT, H)."""
    i, k = tl.arange(0, x.shape[1]), tl.arange(0, acc.shape[1])
    tile = tl.load(weight + i[:, None] * acc.shape[1] + k[None, :], mask=(i < COUNT)[:, None], other=0.0)
    return edge_product(x, tile, acc, PREC, INTERP)


@triton.jit
def add_rows_of(acc, rows, live, weight, COUNT: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + x weight, x in memory: `rows` (ROWS,) points at the first of each row's COUNT columns."""
    for first in tl.static_range(0, COUNT, CHUNK):
        i = first + tl.arange(0, CHUNK)
        x = tl.load(rows[:, None] + i[None, :], mask=live[:, None] & (i < COUNT)[None, :], other=0.0)
        acc = add_columns(acc, x, weight + first * acc.shape[1], COUNT - first, PREC, INTERP)
    return acc


@triton.jit
def action_output(h, weight, bias, A: tl.constexpr, AP: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return h weight + bias, (ROWS, AP); columns from A on are zero."""
    i, c = tl.arange(0, h.shape[1]), tl.arange(0, AP)
    tile = tl.load(weight + i[:, None] * A + c[None, :], mask=(c < A)[None, :], other=0.0)
    acc = tl.zeros((h.shape[0], AP), tl.float32) + tl.load(bias + c, mask=c < A, other=0.0)[None, :]
    return edge_product(h, tile, acc, PREC, INTERP)


@triton.jit
def _units(h0, w1, b1, j, BN: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return the second pre-activations j to j + BN, (ROWS, BN), from the rounded first activation."""
    k, n = tl.arange(0, h0.shape[1]), j + tl.arange(0, BN)
    z = tl.zeros((h0.shape[0], BN), tl.float32) + tl.load(b1 + n)[None, :]
    return product(h0, tl.load(w1 + k[:, None] * h0.shape[1] + n[None, :]), z, PREC, INTERP)


@triton.jit
def hidden_layers(
    h0, w1, b1, w2, b2, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
    saved=None, slopes=None, live=None,
):  # fmt: skip
    """Return the third pre-activation (ROWS, H) from the first activation: mish(h0 W1 + b1) W2 + b2.

    Where saved and slopes, (ROWS,) each, point at what a row keeps, store h1 there for the weight gradients and the
    slope of its Mish for the way back.
    """
    H: tl.constexpr = h0.shape[1]
    k, n = tl.arange(0, H), tl.arange(0, BN)
    h0 = operand(h0, PREC, INTERP)
    acc = tl.zeros((h0.shape[0], H), tl.float32) + tl.load(b2 + k)[None, :]
    for j in tl.range(0, H, BN, num_stages=STAGES):
        z = _units(h0, w1, b1, j, BN, PREC, INTERP)
        if saved is None:
            h = mish(z)
        else:
            h, slope = mish_and_slope(z)
            save(saved[:, None] + (j + n)[None, :], h, live[:, None], PREC, INTERP)
            tl.store(slopes[:, None] + (j + n)[None, :], slope, mask=live[:, None])
        h = operand(h, PREC, INTERP)
        acc = product(h, tl.load(w2 + (j + n)[:, None] * H + k[None, :]), acc, PREC, INTERP)
    return acc


@triton.jit
def hidden_layers_backward(
    dz2, w1, w2, saved, slopes, live, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Return dL/dh0 (ROWS, H) from dL/dz2, and store dL/dz1 at `saved` (ROWS,) for the weight gradients."""
    H: tl.constexpr = dz2.shape[1]
    k, n = tl.arange(0, H), tl.arange(0, BN)
    dz2 = operand(dz2, PREC, INTERP)
    acc = tl.zeros((dz2.shape[0], H), tl.float32)
    tl.debug_barrier()  # other threads of this block wrote the slopes
    for j in tl.range(0, H, BN, num_stages=STAGES):
        back = tl.zeros((dz2.shape[0], BN), tl.float32)
        back = product(dz2, tl.load(w2 + (j + n)[None, :] * H + k[:, None]), back, PREC, INTERP)
        dz1 = back * tl.load(slopes[:, None] + (j + n)[None, :], mask=live[:, None], other=0.0)
        save(saved[:, None] + (j + n)[None, :], dz1, live[:, None], PREC, INTERP)
        dz1 = operand(dz1, PREC, INTERP)
        acc = product(dz1, tl.load(w1 + k[None, :] * H + (j + n)[:, None]), acc, PREC, INTERP)
    return acc
