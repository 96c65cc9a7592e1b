"""The twin critic: its regression with the gradient through the activations, and its values without gradient.

`gtp_critic_forward` runs both heads and keeps what the way back needs. It reads no target, so it runs beside the launch
that computes one. `gtp_critic_backward` forms y = r + gamma (1 - terminal) min_j max_samples Q_j^-(o', a') and the
gradient of mse(Q1, y) + mse(Q2, y) (Eq. 16), and goes back through the activations; `gtp_gradients` then forms the
weights' gradients. `gtp_heads` only runs forward: for the TD target, for the advantage, and to choose among candidates.

A block has one head and BM rows. It reads their transitions and 2 H^2 operands of the hidden weights. Forward and back
together write a kept row and 3 H slopes for each batch row, `gtp_heads` one value.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gtp_kernels import launch, mlp


@launch.writes("act_ptr", "slope_ptr", "q_ptr")
@triton.jit
def gtp_critic_forward(
    batch_ptr, param_ptr, w1_ptr, w2_ptr, act_ptr, slope_ptr, q_ptr, param_stride, hidden_stride,
    BATCH: tl.constexpr, COLUMNS: tl.constexpr, X: tl.constexpr,
    D: tl.constexpr, A: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Run both heads at the batch's own actions; grid (ceil(BATCH / BM), 2, S).

    batch_ptr float32 (S, BATCH, W). act_ptr (2 S, BATCH, COLUMNS) receives the inputs and activations of the kept rows
    that `launch.critic_saved` lays out, their input padded to X columns; slope_ptr (2 S, BATCH, 3 H) the slopes of Mish
    for the way back. q_ptr (S, 2, BATCH) receives the values.
    """
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    head, member = tl.program_id(1), mlp.wide(tl.program_id(2))
    row = 2 * member + head
    live = b < BATCH
    k = tl.arange(0, H)
    source = batch_ptr + (member * BATCH + b) * W
    acts = act_ptr + (row * BATCH + b) * COLUMNS
    slopes = slope_ptr + (row * BATCH + b) * 3 * H
    for first in tl.static_range(0, D + A, mlp.CHUNK):
        i = first + tl.arange(0, mlp.CHUNK)
        inside = live[:, None] & (i < D + A)[None, :]
        mlp.save(acts[:, None] + i[None, :], tl.load(source[:, None] + i[None, :], mask=inside), inside, PREC, INTERP)

    w0 = param_ptr + row * param_stride
    b0, b1, b2, w3 = mlp.pointers(w0, D + A, H)
    w1, w2 = w1_ptr + row * hidden_stride, w2_ptr + row * hidden_stride
    z = tl.zeros((BM, H), tl.float32) + tl.load(b0 + k)[None, :]
    h, slope = mlp.mish_and_slope(mlp.add_rows_of(z, source, live, w0, D + A, PREC, INTERP))
    tl.store(slopes[:, None] + k[None, :], slope, mask=live[:, None])
    z = mlp.hidden_layers(h, w1, b1, w2, b2, acts + X, live, BK, STAGES, PREC, INTERP, slopes)
    h, slope = mlp.mish_and_slope(z)
    mlp.save(acts[:, None] + X + 2 * H + k[None, :], h, live[:, None], PREC, INTERP)
    tl.store(slopes[:, None] + 2 * H + k[None, :], slope, mask=live[:, None])
    q = tl.sum(h * tl.load(w3 + k)[None, :], axis=1) + tl.load(w3 + H)
    tl.store(q_ptr + row * BATCH + b, q, mask=live)


@launch.writes("act_ptr", "target_ptr")
@triton.jit
def gtp_critic_backward(
    batch_ptr, next_q_ptr, q_ptr, param_ptr, w1_ptr, w2_ptr, act_ptr, slope_ptr, target_ptr,
    param_stride, hidden_stride, gamma,
    BATCH: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, X: tl.constexpr,
    D: tl.constexpr, A: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Carry the TD error of `gtp_critic_forward`'s values back through its activations; grid (ceil(BATCH / BM), 2, S).

    next_q_ptr (S, 2, SAMPLES * BATCH): the target heads' values at (o', a'). act_ptr receives dL/dz of the kept rows,
    target_ptr (S, BATCH) y. The other pointers are those of `gtp_critic_forward`.
    """
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    head, member = tl.program_id(1), mlp.wide(tl.program_id(2))
    row = 2 * member + head
    live = b < BATCH
    k = tl.arange(0, H)
    acts = act_ptr + (row * BATCH + b) * COLUMNS
    slopes = slope_ptr + (row * BATCH + b) * 3 * H
    y = _td_target(batch_ptr, next_q_ptr, gamma, member, b, live, BATCH, SAMPLES, D + A, W)
    tl.store(target_ptr + member * BATCH + b, y, mask=live & (head == 0))
    dq = tl.where(live, (2.0 / BATCH) * (tl.load(q_ptr + row * BATCH + b, mask=live, other=0.0) - y), 0.0)
    mlp.save(acts + X + 6 * H, dq, live, PREC, INTERP)

    _, _, _, w3 = mlp.pointers(param_ptr + row * param_stride, D + A, H)
    w1, w2 = w1_ptr + row * hidden_stride, w2_ptr + row * hidden_stride
    slope = tl.load(slopes[:, None] + 2 * H + k[None, :], mask=live[:, None], other=0.0)
    dz2 = dq[:, None] * tl.load(w3 + k)[None, :] * slope
    mlp.hidden_layers_backward(dz2, w1, w2, acts + X + 3 * H, slopes, live, BK, STAGES, PREC, INTERP)


@triton.jit
def _td_target(
    batch_ptr, next_q_ptr, gamma, member, b, live,
    BATCH: tl.constexpr, SAMPLES: tl.constexpr, REWARD_AT: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Return y of transitions b; of several samples at o' each head's best one counts."""
    best0 = tl.full((b.shape[0],), float("-inf"), tl.float32)
    best1 = best0
    for sample in tl.static_range(0, SAMPLES):
        place = next_q_ptr + 2 * member * SAMPLES * BATCH + sample * BATCH + b
        best0 = mlp.larger(best0, tl.load(place, mask=live, other=0.0))
        best1 = mlp.larger(best1, tl.load(place + SAMPLES * BATCH, mask=live, other=0.0))
    outcome = batch_ptr + (member * BATCH + b) * W + REWARD_AT
    bootstrap = tl.load(outcome + 1, mask=live, other=0.0)
    return tl.load(outcome, mask=live, other=0.0) + gamma * bootstrap * mlp.smaller(best0, best1)


@launch.writes("q_ptr", "hidden_ptr")
@triton.jit
def gtp_heads(
    obs_ptr, batch_action_ptr, action_ptr, param_ptr, w1_ptr, w2_ptr, q_ptr, hidden_ptr,
    obs_rows, action_rows, param_stride, hidden_stride,
    ROWS: tl.constexpr, FROM_BATCH: tl.constexpr, WRAP: tl.constexpr, REPEAT: tl.constexpr,
    D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Write Q_j(o, a) of ROWS rows to q_ptr, float32 (S, 2, ROWS); grid (ceil(ROWS / BM), 2, S).

    Row r reads observation r % WRAP // REPEAT of obs_ptr, (S, obs_rows, W). The first FROM_BATCH rows take the batch's
    action beside it, from batch_action_ptr (S, obs_rows, W); the others take row r - FROM_BATCH of action_ptr,
    (S, action_rows, A). hidden_ptr (S, 2, ROWS, 2 H) is scratch.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    head, member = tl.program_id(1), mlp.wide(tl.program_id(2))
    live = r < ROWS
    column, k = tl.arange(0, AP)[None, :], tl.arange(0, H)
    own = member * obs_rows * W + mlp.wide(r % WRAP // REPEAT) * W
    drawn = action_ptr + member * action_rows * A + mlp.wide(r - FROM_BATCH)[:, None] * A + column
    a = tl.load(drawn, mask=(live & (r >= FROM_BATCH))[:, None] & (column < A), other=0.0)
    if FROM_BATCH > 0:
        inside = (live & (r < FROM_BATCH))[:, None] & (column < A)
        a += tl.load(batch_action_ptr + own[:, None] + column, mask=inside, other=0.0)

    w0 = param_ptr + (2 * member + head) * param_stride
    b0, b1, b2, w3 = mlp.pointers(w0, D + A, H)
    hidden = (2 * member + head) * hidden_stride
    z = tl.zeros((BM, H), tl.float32) + tl.load(b0 + k)[None, :]
    z = mlp.add_rows_of(z, obs_ptr + own, live, w0, D, PREC, INTERP)
    z = mlp.add_columns(z, a, w0 + D * H, A, PREC, INTERP)
    w1, w2 = w1_ptr + hidden, w2_ptr + hidden
    kept = hidden_ptr + (2 * member + head) * ROWS * 2 * H + mlp.wide(r) * 2 * H
    z = mlp.hidden_layers(mlp.mish(z), w1, b1, w2, b2, kept, live, BK, STAGES, PREC, INTERP)
    q = tl.sum(mlp.mish(z) * tl.load(w3 + k)[None, :], axis=1) + tl.load(w3 + H)
    tl.store(q_ptr + (2 * member + head) * ROWS + r, q, mask=live)
