"""Sampling actions: the K-step chain as one launch, and the choice among an observation's candidates.

`gtp_chain` starts from a = sigma_max z, z ~ N(0, I), and repeats a <- Phi(a, t_k, t_(k+1)) = r a + (1 - r) phi with
r = t_(k+1) / t_k (Eq. 4). What does not change along the chain is computed once: the observation's share of the first
layer, and the share of each step's two time embeddings. In training a block also draws its transitions and its noise,
and writes the batch for the launches that follow; in acting both are inputs.

Each block of BM rows reads the observations once, and K times the hidden weights, 2 H^2 operands. K times it stores 2 H
operands of each row and reads them again. It writes BM A actions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gtp_kernels import draws, launch, mlp

# `gtp_fast.device` refuses more steps. A product takes at least 16 rows, so a smaller number would save nothing.
LARGEST_K = tl.constexpr(16)


@launch.writes("action_ptr", "batch_ptr", "hidden_ptr")
@triton.jit(do_not_specialize=["offset"])
def gtp_chain(
    rows_ptr, noise_ptr, seed_ptr, step_ptr, offset, param_ptr, w1_ptr, w2_ptr, grid_ptr, action_ptr, batch_ptr,
    hidden_ptr, size, param_stride, hidden_stride, sigma_min, sigma_data,
    BATCH: tl.constexpr, NEXT: tl.constexpr, ROWS: tl.constexpr, REPEAT: tl.constexpr,
    D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, W: tl.constexpr, H: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, KEEP: tl.constexpr, FLOW: tl.constexpr,
    PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Sample ROWS actions of each member; grid (ceil(ROWS / BM), S).

    Training (BATCH > 0), at the step of step_ptr plus offset: rows_ptr float32 (size, W) is the replay buffer. The
    first NEXT rows act at the batch's next observations, in blocks of BATCH; the others act at its observations.
    batch_ptr (S, BATCH, W) receives the transitions. Acting (BATCH 0): rows_ptr (S, ROWS / REPEAT, W) holds the
    observations, each for REPEAT candidates, and noise_ptr (S, ROWS, A) standard normals. action_ptr float32 (S, ROWS,
    A) receives the clamped actions; hidden_ptr (S, ROWS, 2 H) is scratch. KEEP: the first and last weights stay in
    shared memory along the chain. FLOW: phi is the network itself, without EDM's scaling.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    member = mlp.wide(tl.program_id(1))
    live = r < ROWS
    column = tl.arange(0, AP)[None, :]
    if BATCH > 0:
        seed, step = tl.load(seed_ptr + member), tl.load(step_ptr) + offset
        bits, _, _, _ = draws.random_bits(seed, step, draws.INDEX, r % BATCH)
        source = rows_ptr + draws.integer_below(bits, size).to(tl.int64) * W
        for first in tl.static_range(0, W, mlp.CHUNK):
            i = first + tl.arange(0, mlp.CHUNK)
            inside = (r < BATCH)[:, None] & (i < W)[None, :]
            whole = tl.load(source[:, None] + i[None, :], mask=inside)
            tl.store(batch_ptr + (member * BATCH + r)[:, None] * W + i[None, :], whole, mask=inside)
        is_next = r < NEXT
        obs = source + tl.where(is_next, D + A + 2, 0)
        stream = tl.where(is_next, draws.TARGET_NOISE, draws.VALUE_NOISE)[:, None]
        z = draws.normals(seed, step, stream, tl.where(is_next, r, r - NEXT)[:, None], column, A)
    else:
        obs = rows_ptr + (member * (ROWS // REPEAT) + r // REPEAT) * W
        given = noise_ptr + (member * ROWS + r)[:, None] * A + column
        z = tl.load(given, mask=live[:, None] & (column < A), other=0.0)
    z = tl.where(column < A, z, 0.0)

    param = param_ptr + member * param_stride
    w0 = param + mlp.TIME_NETS
    b0, b1, b2, w3 = mlp.pointers(w0, A + mlp.EMBEDDINGS + D, H)
    kept = hidden_ptr + (member * ROWS + r) * 2 * H
    k = tl.arange(0, H)
    fixed = tl.zeros((BM, H), tl.float32) + tl.load(b0 + k)[None, :]
    fixed = mlp.add_rows_of(fixed, obs, live, w0 + (A + mlp.EMBEDDINGS) * H, D, PREC, INTERP)
    shares = _time_shares(param, w0 + A * H, grid_ptr, sigma_min, K, H, PREC, INTERP)
    a = tl.load(grid_ptr) * z
    if KEEP:
        x_weight = mlp.thin_weight(w0, A, AP, H)
        weight, bias = mlp.last_layer(w3, A, AP, H)
    for i in tl.range(0, K):
        if not KEEP:  # each loaded where it is used, the two hold no shared memory beside the hidden layers
            x_weight = mlp.thin_weight(w0, A, AP, H)
        t, s = tl.load(grid_ptr + i), tl.load(grid_ptr + i + 1)
        variance = t * t + sigma_data * sigma_data
        c_in = tl.rsqrt(variance)
        x = a if FLOW else c_in * a
        share = tl.sum(tl.where((tl.arange(0, LARGEST_K) == i)[:, None], shares, 0.0), axis=0)
        h = mlp.mish(mlp.edge_product(x, x_weight, fixed + share[None, :], PREC, INTERP))
        w1, w2 = w1_ptr + member * hidden_stride, w2_ptr + member * hidden_stride
        h = mlp.mish(mlp.hidden_layers(h, w1, b1, w2, b2, kept, live, BK, STAGES, PREC, INTERP))
        if not KEEP:
            weight, bias = mlp.last_layer(w3, A, AP, H)
        f = mlp.action_output(h, weight, bias, PREC, INTERP)
        denoised = f if FLOW else (sigma_data * sigma_data / variance) * a + (t * sigma_data * c_in) * f
        ratio = s / t
        a = ratio * a + (1.0 - ratio) * denoised
    a = tl.clamp(a, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(action_ptr + (member * ROWS + r)[:, None] * A + column, a, mask=live[:, None] & (column < A))


@triton.jit
def _time_shares(
    param, weight, grid_ptr, sigma_min, K: tl.constexpr, H: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr
):
    """Return what the embeddings of t_k and t_(k+1) add to the first layer, (LARGEST_K, H): row k for step k."""
    i = tl.arange(0, LARGEST_K)
    t = tl.load(grid_ptr + i, mask=i < K, other=1.0)
    s = tl.load(grid_ptr + i + 1, mask=i < K, other=1.0)
    both = mlp.time_embeddings(param, t, s, sigma_min, PREC, INTERP)
    zero = tl.zeros((LARGEST_K, H), tl.float32)
    return mlp.add_columns(zero, both, weight, mlp.EMBEDDINGS, PREC, INTERP)


@launch.writes("chosen_ptr")
@triton.jit
def gtp_choose(
    action_ptr, q_ptr, gumbel_ptr, chosen_ptr, observations,
    CANDIDATES: tl.constexpr, PADDED: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, NOISY: tl.constexpr,
):  # fmt: skip
    """Write each observation's action with the largest min(Q1, Q2), plus gumbel if NOISY; grid (B, S).

    action_ptr float32 (S, B CANDIDATES, A); q_ptr (S, 2, B CANDIDATES); gumbel_ptr (S, B CANDIDATES); chosen_ptr
    (S, B, A). Of equal values the first wins. NaN counts as the largest, as in torch.
    """
    b, member = tl.program_id(0), mlp.wide(tl.program_id(1))
    rows = observations * CANDIDATES
    i = tl.arange(0, PADDED)
    r, live = b * CANDIDATES + i, i < CANDIDATES
    q0 = tl.load(q_ptr + 2 * member * rows + r, mask=live, other=0.0)
    q1 = tl.load(q_ptr + (2 * member + 1) * rows + r, mask=live, other=0.0)
    q = mlp.smaller(q0, q1)
    if NOISY:
        q += tl.load(gumbel_ptr + member * rows + r, mask=live, other=0.0)
    # argmax compares, and every comparison with NaN is false: its result would depend on the threads' order.
    q = tl.where(q != q, float("inf"), q)
    best = tl.argmax(tl.where(live, q, float("-inf")), axis=0)
    column = tl.arange(0, AP)
    action = tl.load(action_ptr + (member * rows + b * CANDIDATES + best) * A + column, mask=column < A)
    tl.store(chosen_ptr + (member * observations + b) * A + column, action, mask=column < A)
