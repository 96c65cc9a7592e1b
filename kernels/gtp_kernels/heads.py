"""The twin critic without gradient: Q of both heads for many rows, as TD target, for the advantage, and to choose."""

import triton
import triton.language as tl

from gtp_kernels import mlp


@triton.jit
def gtp_heads(
    obs_ptr, batch_action_ptr, action_ptr, param_ptr, w1_ptr, w2_ptr, q_ptr,
    obs_rows, action_rows, param_stride, pair_stride,
    ROWS: tl.constexpr, FROM_BATCH: tl.constexpr, WRAP: tl.constexpr, REPEAT: tl.constexpr,
    D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Write Q_j(o, a) of ROWS rows to q_ptr, float32 (S, 2, ROWS); grid (ceil(ROWS / BM), 2, S).

    Row r reads observation r % WRAP // REPEAT of obs_ptr, (S, obs_rows, W); its action is that of the batch for the
    first FROM_BATCH rows (batch_action_ptr, (S, obs_rows, W)), and row r - FROM_BATCH of action_ptr,
    (S, action_rows, A), for the others.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    head, member = tl.program_id(1), tl.program_id(2)
    live = r < ROWS
    column, k = tl.arange(0, AP)[None, :], tl.arange(0, H)
    own = (member * obs_rows + r % WRAP // REPEAT) * W
    drawn = (member * action_rows + r - FROM_BATCH)[:, None] * A + column
    a = tl.load(action_ptr + drawn, mask=(live & (r >= FROM_BATCH))[:, None] & (column < A), other=0.0)
    if FROM_BATCH > 0:
        inside = (live & (r < FROM_BATCH))[:, None] & (column < A)
        a += tl.load(batch_action_ptr + own[:, None] + column, mask=inside, other=0.0)

    w0 = param_ptr + (2 * member + head) * param_stride
    b0, b1, b2, w3 = mlp.layers(w0, D + A, H)
    pair = (2 * member + head) * pair_stride
    z = tl.zeros((BM, H), tl.float32) + tl.load(b0 + k)[None, :]
    z = mlp.add_rows_of(z, obs_ptr + own, live, w0, D, PREC, INTERP)
    z = mlp.add_columns(z, a, w0 + D * H, A, PREC, INTERP)
    z = mlp.hidden_pair(mlp.mish(z), w1_ptr + pair, b1, w2_ptr + pair, b2, BN, STAGES, PREC, INTERP)
    q = tl.sum(mlp.mish(z) * tl.load(w3 + k)[None, :], axis=1) + tl.load(w3 + H)
    tl.store(q_ptr + (2 * member + head) * ROWS + r, q, mask=live)
