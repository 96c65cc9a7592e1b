"""Acting at a few rows: `gtp_act` is the K-step chain of `gtp_chain` with each row's network spread over G blocks.

For one row the chain waits for 2 H^2 weights a step, which one multiprocessor reads slowly. Here block g keeps columns
J of W1 and rows J of W2, H / G of each, in registers along the chain. A step is

    part_g = mish(h0 W1[:, J] + b1[J]) W2[J, :],   z2 = sum_g part_g + b2

so the blocks meet once a step. All of them compute the thin first and last layers, from the same bits to the same bits.

The meeting needs no counter and no fence. A part travels as 64-bit words, a float below and the number of the meeting
above; a reader waits until every word carries the number that it expects. The numbers go on from launch to launch, so a
replayed graph clears nothing. Two mailboxes take turns: a block writes into one again only after it has read from the
other what its peers sent after they had read the first.

All blocks of a launch must be resident together, which a cooperative launch makes sure of. The interpreter runs them
one after another, so there G is 1.

Sums are plain float32: a product on tensor cores has at least 16 rows, and here a block has R, mostly one. Operands are
rounded as in `mlp.py`. Each block reads its weights once, and per step G R H words of 8 bytes.

H200, 2026-11-27, one row, K = 5, TF32: 65 us by `gtp_chain` in one block; here 11.7 by 8 blocks of 4 warps, 13.0 by 8
of 8, 13.7 by 4 of 8 and by 16 of 4.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gtp_kernels import launch, mlp

# A wait ends after so many looks, a fraction of a second, and the actions are then NaN: an error that shows, and a GPU
# that goes on.
PATIENCE = tl.constexpr(1 << 18)


@launch.writes("action_ptr", "mail_ptr", "number_ptr")
@triton.jit
def gtp_act(
    obs_ptr, noise_ptr, param_ptr, w1_ptr, w2_ptr, time_ptr, step_ptr, action_ptr, mail_ptr, number_ptr,
    param_stride, hidden_stride, sigma_max,
    ROWS: tl.constexpr, REPEAT: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    K: tl.constexpr, R: tl.constexpr, G: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Sample ROWS actions of each member, R rows on G blocks; grid (G ceil(ROWS / R), S).

    obs_ptr float32 (S, ROWS / REPEAT, D) and noise_ptr (S, ROWS, A) are the inputs. time_ptr (S, K, H) is what each
    step's time embeddings add to the first layer, step_ptr (K, 3) each step's c_in, keep and output in a <- keep a +
    output F. mail_ptr int64 (S, ceil(ROWS / R), 2, G, R, H) and number_ptr int32 (S, ceil(ROWS / R)), the next
    meeting's number, are kept from launch to launch; numbers start at 1, mail at 0. action_ptr (S, ROWS, A) receives
    the clamped actions. AP: A padded to a power of two.
    """
    tl.static_assert(G == 1 or G * R * H >= 1024, "a word of mail must have one reader")
    EDGE: tl.constexpr = "fp32" if PREC == "fp32" else "tf32"
    tile, g, member = tl.program_id(0) // G, tl.program_id(0) % G, mlp.wide(tl.program_id(1))
    tiles: tl.constexpr = (ROWS + R - 1) // R
    r = tile * R + tl.arange(0, R)
    live = r < ROWS
    c, k, n = tl.arange(0, AP), tl.arange(0, H), g * (H // G) + tl.arange(0, H // G)
    is_action = live[:, None] & (c < A)[None, :]
    number = tl.load(number_ptr + member * tiles + tile)
    mail = mail_ptr + (member * tiles + tile) * (2 * G * R * H)

    w0 = param_ptr + member * param_stride + mlp.TIME_NETS
    b0, b1, b2, w3 = mlp.pointers(w0, A + mlp.EMBEDDINGS + D, H)
    first = _weight(w0 + c[:, None] * H + k[None, :], (c < A)[:, None], EDGE, INTERP)
    second = tl.load(w1_ptr + member * hidden_stride + k[:, None] * H + n[None, :]).to(tl.float32)
    third = tl.load(w2_ptr + member * hidden_stride + n[:, None] * H + k[None, :]).to(tl.float32)
    last = _weight(w3 + k[:, None] * A + c[None, :], (c < A)[None, :], EDGE, INTERP)
    b1, b2, b3 = tl.load(b1 + n), tl.load(b2 + k), tl.load(w3 + H * A + c, mask=c < A, other=0.0)

    obs = obs_ptr + (member * (ROWS // REPEAT) + r // REPEAT) * D
    fixed = tl.zeros((R, H), tl.float32) + tl.load(b0 + k)[None, :]
    for start in tl.static_range(0, D, mlp.CHUNK):
        d = start + tl.arange(0, mlp.CHUNK)
        x = tl.load(obs[:, None] + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
        weight = w0 + (d + A + mlp.EMBEDDINGS)[:, None] * H + k[None, :]
        fixed += _product(x, _weight(weight, (d < D)[:, None], EDGE, INTERP), EDGE, INTERP)
    at = (member * ROWS + r)[:, None] * A + c[None, :]
    a = sigma_max * tl.load(noise_ptr + at, mask=is_action, other=0.0)
    times = time_ptr + member * (K * H) + k
    time = tl.load(times)
    for i in tl.range(0, K):
        c_in, keep, output = tl.load(step_ptr + 3 * i), tl.load(step_ptr + 3 * i + 1), tl.load(step_ptr + 3 * i + 2)
        h = mlp.mish(fixed + time[None, :] + _product(c_in * a, first, EDGE, INTERP))
        h = mlp.mish(_product(h, second, PREC, INTERP) + b1[None, :])
        if R > 1:
            # Each to its own place. Without it Triton gives every thread the whole of h first, 128 Mishes instead of 1.
            h = tl.gather(h, tl.zeros((R, H // G), tl.int32) + tl.arange(0, H // G)[None, :], 1)
        z = _product(h, third, PREC, INTERP)
        time = tl.load(times + (i + 1) % K * H)  # of the next step, before the wait
        if G > 1:
            z = _sum_of_blocks(z, mail + (i % 2) * (G * R * H), g, number + i, G)
        f = _product(mlp.mish(z + b2[None, :]), last, EDGE, INTERP) + b3[None, :]
        a = keep * a + output * f
    a = tl.clamp(a, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    if g == G - 1:  # the peers have read the number: their last words, which carry it, have come
        tl.store(action_ptr + at, a, mask=is_action)
        tl.store(number_ptr + member * tiles + tile, number + K)


@triton.jit
def _weight(pointer, mask, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Load a thin layer's weight and round it to an operand, float32."""
    return mlp.operand(tl.load(pointer, mask=mask, other=0.0), PREC, INTERP).to(tl.float32)


@triton.jit
def _product(x, weight, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return x weight, (R, J) float32, of x (R, I) and a rounded weight (I, J)."""
    x = mlp.operand(x, PREC, INTERP).to(tl.float32)
    return tl.sum(x[:, :, None] * weight[None, :, :], axis=1)


@triton.jit
def _sum_of_blocks(part, box, g, number, G: tl.constexpr):
    """Send this block's part (R, H) to its peers by the mailbox; return the sum of all G, in the order of the blocks.

    A word is one aligned 8-byte access, so its two halves arrive together. Volatile loads pass by the L1 cache.
    """
    R: tl.constexpr = part.shape[0]
    H: tl.constexpr = part.shape[1]
    place = tl.arange(0, R)[:, None] * H + tl.arange(0, H)[None, :]
    tl.store(box + g * (R * H) + place, _words(part, number))
    every = box + tl.arange(0, G)[:, None, None] * (R * H) + place[None, :, :]
    words = tl.load(every, volatile=True)
    looks = 0
    while (looks < PATIENCE) & _any_missing(words, number):
        words = tl.load(every, volatile=True)
        looks += 1
    total = tl.sum(words.to(tl.int32).to(tl.float32, bitcast=True), axis=0)
    return tl.where(looks < PATIENCE, total, float("nan"))


@triton.jit
def _words(x, number):
    """Return float32 x as words: its bits below, the number above."""
    return (number.to(tl.int64) << 32) | (x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def _any_missing(words, number):
    """Return whether a word does not carry the number."""
    return tl.sum(((words >> 32) != number).to(tl.int32)) > 0
