"""The networks inside a kernel: operands and products, Mish, time embeddings, the hidden layers there and back.

A block of ROWS rows passes through a whole network. A hidden layer is one loop over its inputs (`hidden_product`), BK
at a time, so a block holds no weight whole and reads each once. The loop reads a layer's input from memory, where the
layer before has stored it: a loop cannot index what lies in registers, and the weight gradients need most of it there.

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
def wide(index):
    """Return an index in 64 bits, because its product with a stride can reach 2^31.

    Where it is one number for the whole block, it is multiplied before a row's own offset is added: that takes none of
    a thread's registers.
    """
    return index.to(tl.int64)


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
def thin_weight(weight, COUNT: tl.constexpr, PADDED: tl.constexpr, H: tl.constexpr):
    """Load COUNT rows of a weight, (PADDED, H). Called early, it is on its way while something else is computed."""
    i, k = tl.arange(0, PADDED), tl.arange(0, H)
    return tl.load(weight + i[:, None] * H + k[None, :], mask=(i < COUNT)[:, None], other=0.0)


@triton.jit
def add_columns(acc, x, weight, COUNT: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + x weight over the first COUNT columns of x; weight points at the first of its rows, (COUNT, H)."""
    return edge_product(x, thin_weight(weight, COUNT, x.shape[1], acc.shape[1]), acc, PREC, INTERP)


@triton.jit
def add_rows_of(acc, rows, live, weight, COUNT: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return acc + x weight, x in memory: `rows` (ROWS,) points at the first of each row's COUNT columns."""
    for first in tl.static_range(0, COUNT, CHUNK):
        i = first + tl.arange(0, CHUNK)
        x = tl.load(rows[:, None] + i[None, :], mask=live[:, None] & (i < COUNT)[None, :], other=0.0)
        acc = add_columns(acc, x, weight + first * acc.shape[1], COUNT - first, PREC, INTERP)
    return acc


@triton.jit
def last_layer(w3, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr):
    """Load the last weight (H, AP) and bias (AP,) of the actor, whose columns from A on are zero; see `thin_weight`."""
    k, c = tl.arange(0, H), tl.arange(0, AP)
    weight = tl.load(w3 + k[:, None] * A + c[None, :], mask=(c < A)[None, :], other=0.0)
    return weight, tl.load(w3 + H * A + c, mask=c < A, other=0.0)


@triton.jit
def action_output(h, weight, bias, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return h weight + bias, (ROWS, AP); columns from A on are zero."""
    return edge_product(h, weight, tl.zeros((h.shape[0], weight.shape[1]), tl.float32) + bias[None, :], PREC, INTERP)


@triton.jit
def hidden_product(
    x, live, weight, acc, IN: tl.constexpr, OUT: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Return acc + x W, (ROWS, H), where x (ROWS,) points at the H operands that this block has stored of each row.

    A turn of the loop copies BK columns of x and BK rows of W into shared memory, turns before their product. IN and
    OUT are the strides of W's rows and columns: (H, 1) for a weight, (1, H) for its transpose on the way back.
    """
    H: tl.constexpr = acc.shape[1]
    i, k = tl.arange(0, BK), tl.arange(0, H)
    tl.debug_barrier()  # other threads stored x
    for j in tl.range(0, H, BK, num_stages=STAGES):
        part = tl.load(x[:, None] + (j + i)[None, :], mask=live[:, None], other=0.0)
        acc = product(part, tl.load(weight + (j + i)[:, None] * IN + k[None, :] * OUT), acc, PREC, INTERP)
    return acc


@triton.jit
def hidden_layers(
    h0, w1, b1, w2, b2, kept, live, BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
    slopes=None,
):  # fmt: skip
    """Return the third pre-activation (ROWS, H) from the first activation: mish(h0 W1 + b1) W2 + b2.

    kept (ROWS,) points at 2 H operands of each row, where h0 and h1 stay. slopes (ROWS,), if given, points at H slopes
    of Mish for each layer: the second layer's are stored there for the way back.
    """
    H: tl.constexpr = h0.shape[1]
    k = tl.arange(0, H)[None, :]
    zero = tl.zeros_like(h0)
    save(kept[:, None] + k, h0, live[:, None], PREC, INTERP)
    z1 = hidden_product(kept, live, w1, zero + tl.load(b1 + k), H, 1, BK, STAGES, PREC, INTERP)
    if slopes is None:
        h1 = mish(z1)
    else:
        h1, slope = mish_and_slope(z1)
        tl.store(slopes[:, None] + H + k, slope, mask=live[:, None])
    save(kept[:, None] + H + k, h1, live[:, None], PREC, INTERP)
    return hidden_product(kept + H, live, w2, zero + tl.load(b2 + k), H, 1, BK, STAGES, PREC, INTERP)


@triton.jit
def hidden_layers_backward(
    dz2, w1, w2, kept, slopes, live, BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Store dL/dz2 (ROWS, H), dL/dz1 and dL/dz0 for the weight gradients, and return dL/dz0.

    kept (ROWS,) points at 3 H operands of each row, dL/dz0 first; slopes at the H slopes of Mish of each layer.
    """
    H: tl.constexpr = dz2.shape[1]
    k = tl.arange(0, H)[None, :]
    zero = tl.zeros_like(dz2)
    save(kept[:, None] + 2 * H + k, dz2, live[:, None], PREC, INTERP)
    slope = tl.load(slopes[:, None] + H + k, mask=live[:, None], other=0.0)  # on its way during the product
    dz1 = slope * hidden_product(kept + 2 * H, live, w2, zero, 1, H, BK, STAGES, PREC, INTERP)
    save(kept[:, None] + H + k, dz1, live[:, None], PREC, INTERP)
    slope = tl.load(slopes[:, None] + k, mask=live[:, None], other=0.0)
    dz0 = slope * hidden_product(kept + H, live, w1, zero, 1, H, BK, STAGES, PREC, INTERP)
    save(kept[:, None] + k, dz0, live[:, None], PREC, INTERP)
    return dz0
