"""The networks inside a kernel: operands and products, Mish, time embeddings, and the hidden pair there and back.

A block of ROWS rows passes through a whole network without leaving the chip: the two hidden layers run as one loop over
BN hidden units, acc += mish(h0 W1[:, j] + b1[j]) W2[j, :], so that neither weight is ever needed whole.

Every minimum and maximum of floats in the kernels passes NaN on, which a GPU's plain ones drop: what is no number must
reach the metrics. `tests/kernels/test_aot.py` holds the compiled code to it.

Weights are (in, out), row-major. PREC is "fp32", "tf32" or "bf16": what the operands of the hidden pair are; sums are
always float32. The thin layers around them are "tf32" where PREC is "bf16". INTERP is set under TRITON_INTERPRET=1,
which has no bf16 arithmetic and does not round operands: there the rounding is done on float32 bits.
"""

import triton
import triton.language as tl

from gtp_kernels.draws import turn

TIME_WIDTH = tl.constexpr(16)
TIME_HIDDEN = tl.constexpr(32)
# Offsets of the time networks in a row of the actor's buffer: Linear(16, 32), Linear(32, 16) for t, then for s.
TIME_NET = tl.constexpr(1088)  # 16 * 32 + 32 + 32 * 16 + 16, rounded up to a multiple of 32
TIME_W1 = tl.constexpr(544)
TIME_B1 = tl.constexpr(1056)
TIME_NETS = tl.constexpr(2176)


@triton.jit
def operand(x, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Round float32 to what a product takes: bf16 to nearest even, tf32 to nearest (the hardware would truncate)."""
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
    """Store float32 as the operand that the weight gradients will read."""
    tl.store(pointer, operand(x, PREC, INTERP).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def mish(x):
    """Mish with one exponential: e = exp(min(x, 20)), n = e (e + 2), mish = x n / (n + 2)."""
    e = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@triton.jit
def mish_and_slope(x):
    """Return mish(x) and its derivative: with m = 1 + e + e^2/2 it is (1 - 1/m) + x e (e + 1) / m^2."""
    e = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
    n = 0.5 * e * e + e
    inverse = 1.0 / (n + 1.0)
    share = n * inverse
    return x * share, share + x * (e * e + e) * inverse * inverse


@triton.jit
def layers(w0, INPUTS: tl.constexpr, H: tl.constexpr):
    """Return where b0, b1, b2 and the last weight lie, from the first weight of a network with INPUTS inputs.

    The hidden weights lie between the biases; `w1_ptr` and `w2_ptr` of every kernel point at what products read.
    """
    b0 = w0 + INPUTS * H
    b1 = b0 + H + H * H
    b2 = b1 + H + H * H
    return b0, b1, b2, b2 + H


@triton.jit
def sinusoids(time, sigma_min):
    """Return sin and cos of 0.25 ln t at eight frequencies, (ROWS, 16); times below sigma_min count as sigma_min."""
    i = tl.arange(0, TIME_WIDTH)
    frequency = tl.exp((i % 8).to(tl.float32) * -1.3157629102823121)  # -ln(10000) / 7
    time = tl.maximum(time, sigma_min, propagate_nan=tl.PropagateNan.ALL)
    angle = (0.25 * tl.log(time))[:, None] * frequency[None, :]
    cos, sin = turn(angle * 0.15915494309189535)  # 1 / (2 pi)
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
    i, j = tl.arange(0, TIME_HIDDEN), tl.arange(0, 2 * TIME_WIDTH)
    of_t = (j < TIME_WIDTH)[None, :]
    weight, bias = nets + TIME_W1 + i[:, None] * TIME_WIDTH, nets + TIME_B1
    tile_t = tl.load(weight + j[None, :], mask=of_t, other=0.0)
    tile_s = tl.load(weight + TIME_NET - TIME_WIDTH + j[None, :], mask=of_t == 0, other=0.0)
    bias = tl.load(bias + tl.where(j < TIME_WIDTH, j, TIME_NET - TIME_WIDTH + j))
    acc = tl.zeros((hidden_t.shape[0], 2 * TIME_WIDTH), tl.float32) + bias[None, :]
    return edge_product(hidden_s, tile_s, edge_product(hidden_t, tile_t, acc, PREC, INTERP), PREC, INTERP)


@triton.jit
def time_embeddings(nets, t, s, sigma_min, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Embed noise levels t and s (ROWS,) -> (ROWS, 32), each by sinusoids, Linear, Mish, Linear of its own."""
    hidden_t = mish(time_hidden(nets, sinusoids(t, sigma_min), PREC, INTERP))
    hidden_s = mish(time_hidden(nets + TIME_NET, sinusoids(s, sigma_min), PREC, INTERP))
    return time_output(nets, hidden_t, hidden_s, PREC, INTERP)


@triton.jit
def add_columns(acc, x, weight, COUNT: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + x weight for the first COUNT of x's columns; weight points at their first row, (COUNT, H)."""
    i, k = tl.arange(0, x.shape[1]), tl.arange(0, acc.shape[1])
    tile = tl.load(weight + i[:, None] * acc.shape[1] + k[None, :], mask=(i < COUNT)[:, None], other=0.0)
    return edge_product(x, tile, acc, PREC, INTERP)


@triton.jit
def add_rows_of(acc, rows, live, weight, COUNT: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + x weight, where `rows` (ROWS,) points at the first of each row's COUNT columns in memory."""
    CHUNK: tl.constexpr = 32
    for first in tl.static_range(0, COUNT, CHUNK):
        i = first + tl.arange(0, CHUNK)
        x = tl.load(rows[:, None] + i[None, :], mask=live[:, None] & (i < COUNT)[None, :], other=0.0)
        acc = add_columns(acc, x, weight + first * acc.shape[1], COUNT - first, PREC, INTERP)
    return acc


@triton.jit
def action_output(
    h, weight, bias, A: tl.constexpr, AP: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr
):  # fmt: skip
    """Return h weight + bias, (ROWS, AP); columns from A on are zero."""
    i, c = tl.arange(0, h.shape[1]), tl.arange(0, AP)
    tile = tl.load(weight + i[:, None] * A + c[None, :], mask=(c < A)[None, :], other=0.0)
    acc = tl.zeros((h.shape[0], AP), tl.float32) + tl.load(bias + c, mask=c < A, other=0.0)[None, :]
    return edge_product(h, tile, acc, PREC, INTERP)


@triton.jit
def _units(h0, w1, b1, j, BN: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return the second pre-activations j to j + BN, (ROWS, BN), from the first activation, already rounded."""
    k, n = tl.arange(0, h0.shape[1]), j + tl.arange(0, BN)
    z = tl.zeros((h0.shape[0], BN), tl.float32) + tl.load(b1 + n)[None, :]
    return product(h0, tl.load(w1 + k[:, None] * h0.shape[1] + n[None, :]), z, PREC, INTERP)


@triton.jit
def hidden_pair(h0, w1, b1, w2, b2, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return the third pre-activation (ROWS, H) from the first activation: mish(h0 W1 + b1) W2 + b2."""
    H: tl.constexpr = h0.shape[1]
    k, n = tl.arange(0, H), tl.arange(0, BN)
    h0 = operand(h0, PREC, INTERP)
    acc = tl.zeros((h0.shape[0], H), tl.float32) + tl.load(b2 + k)[None, :]
    for j in tl.range(0, H, BN, num_stages=STAGES):
        z = _units(h0, w1, b1, j, BN, PREC, INTERP)
        h = operand(mish(z), PREC, INTERP)
        acc = product(h, tl.load(w2 + (j + n)[:, None] * H + k[None, :]), acc, PREC, INTERP)
    return acc


@triton.jit
def hidden_pair_saving(
    h0, w1, b1, w2, b2, saved, slopes, live, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Like `hidden_pair`; keeps h1 for the weight gradients and the slope of its Mish for `hidden_pair_backward`.

    saved and slopes (ROWS,) point at each row's place for them.
    """
    H: tl.constexpr = h0.shape[1]
    k, n = tl.arange(0, H), tl.arange(0, BN)
    h0 = operand(h0, PREC, INTERP)
    acc = tl.zeros((h0.shape[0], H), tl.float32) + tl.load(b2 + k)[None, :]
    for j in tl.range(0, H, BN, num_stages=STAGES):
        z = _units(h0, w1, b1, j, BN, PREC, INTERP)
        h, slope = mish_and_slope(z)
        save(saved[:, None] + (j + n)[None, :], h, live[:, None], PREC, INTERP)
        tl.store(slopes[:, None] + (j + n)[None, :], slope, mask=live[:, None])
        h = operand(h, PREC, INTERP)
        acc = product(h, tl.load(w2 + (j + n)[:, None] * H + k[None, :]), acc, PREC, INTERP)
    return acc


@triton.jit
def hidden_pair_backward(
    dz2, w1, w2, saved, slopes, live, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Return dL/dh0 (ROWS, H) from dL/dz2; keeps dL/dz1 in `saved` (ROWS,) for the weight gradients."""
    H: tl.constexpr = dz2.shape[1]
    k, n = tl.arange(0, H), tl.arange(0, BN)
    dz2 = operand(dz2, PREC, INTERP)
    acc = tl.zeros((dz2.shape[0], H), tl.float32)
    tl.debug_barrier()  # the slopes were written by other threads of this block
    for j in tl.range(0, H, BN, num_stages=STAGES):
        back = tl.zeros((dz2.shape[0], BN), tl.float32)
        back = product(dz2, tl.load(w2 + (j + n)[None, :] * H + k[:, None]), back, PREC, INTERP)
        dz1 = back * tl.load(slopes[:, None] + (j + n)[None, :], mask=live[:, None], other=0.0)
        save(saved[:, None] + (j + n)[None, :], dz1, live[:, None], PREC, INTERP)
        dz1 = operand(dz1, PREC, INTERP)
        acc = product(dz1, tl.load(w1 + k[None, :] * H + (j + n)[:, None]), acc, PREC, INTERP)
    return acc
