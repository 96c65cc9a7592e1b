"""Advantage weights, and every metric of a step: the reductions over a batch, one program a member."""

import triton
import triton.language as tl


@triton.jit
def gtp_advantage(
    q_ptr, loss_ptr, critic_q_ptr, target_ptr, eta_ptr, step_ptr, weight_ptr, metric_ptr, now_ptr,
    cap, lambda_flow,
    BATCH: tl.constexpr, SAMPLES: tl.constexpr, BC: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write w = exp(eta max(0, A) / (std(A) + eps)), capped (Eq. 14), and the metrics; grid (S,).

    q_ptr float32 (S, 2, (1 + SAMPLES) BATCH): the updated heads at (o, a), then at the policy's samples in blocks;
    A = Qmin(o, a) - mean Qmin(o, a_m). loss_ptr (S, 2, BATCH), critic_q_ptr (S, 2, BATCH), target_ptr (S, BATCH).
    weight_ptr (S, BATCH); metric_ptr (S, 16) in the order of `metrics` of gtp_fast, the two gradient norms left out;
    now_ptr int64 (S,) receives the step, for the launch that counts it on.
    """
    member = tl.program_id(0)
    tl.store(now_ptr + member, tl.load(step_ptr))
    metric = metric_ptr + member * 16
    mean, std = 0.0, 1.0
    if not BC:
        _critic_metrics(critic_q_ptr, target_ptr, member, metric, BATCH, CHUNK)
        mean, std = _spread(q_ptr, member, BATCH, SAMPLES, CHUNK)
        tl.store(metric + 8, mean)
        tl.store(metric + 9, std)
    eta = tl.load(eta_ptr + member)
    w_sum, w_square, w_max, map_sum, inst_sum = _zero(CHUNK), _zero(CHUNK), _zero(CHUNK), _zero(CHUNK), _zero(CHUNK)
    for first in range(0, BATCH, CHUNK):
        b = first + tl.arange(0, CHUNK)
        live = b < BATCH
        w = tl.where(live, 1.0, 0.0)
        if not BC:
            gain = _advantage(q_ptr, member, b, live, BATCH, SAMPLES)
            gain = _larger(gain, 0.0)
            w = tl.exp(eta * gain / (std + 1e-8))
            w = tl.where(live, tl.where((cap > 0.0) & (w > cap), cap, w), 0.0)
            tl.store(weight_ptr + member * BATCH + b, w, mask=live)
        w_sum += w
        w_square += w * w
        w_max = _larger(w_max, w)
        map_sum += w * tl.load(loss_ptr + 2 * member * BATCH + b, mask=live, other=0.0)
        inst_sum += w * tl.load(loss_ptr + (2 * member + 1) * BATCH + b, mask=live, other=0.0)
    traj, inst = tl.sum(map_sum) / BATCH, tl.sum(inst_sum) / BATCH
    tl.store(metric, traj + lambda_flow * inst)
    tl.store(metric + 1, traj)
    tl.store(metric + 2, inst)
    if not BC:
        w_mean = tl.sum(w_sum) / BATCH
        tl.store(metric + 10, w_mean)
        tl.store(metric + 11, tl.reduce(w_max, 0, _larger))
        tl.store(metric + 12, w_mean * w_mean / (tl.sum(w_square) / BATCH))


@triton.jit
def _critic_metrics(critic_q_ptr, target_ptr, member, metric, BATCH: tl.constexpr, CHUNK: tl.constexpr):
    """Write the critic's loss, mean Q and mean target."""
    q_sum, td, y_sum = _zero(CHUNK), _zero(CHUNK), _zero(CHUNK)
    for first in range(0, BATCH, CHUNK):
        b = first + tl.arange(0, CHUNK)
        live = b < BATCH
        y = tl.load(target_ptr + member * BATCH + b, mask=live, other=0.0)
        q0 = tl.load(critic_q_ptr + 2 * member * BATCH + b, mask=live, other=0.0)
        q1 = tl.load(critic_q_ptr + (2 * member + 1) * BATCH + b, mask=live, other=0.0)
        q_sum += q0 + q1
        td += (q0 - y) * (q0 - y) + (q1 - y) * (q1 - y)
        y_sum += y
    tl.store(metric + 4, tl.sum(td) / BATCH)
    tl.store(metric + 5, tl.sum(q_sum) / (2 * BATCH))
    tl.store(metric + 6, tl.sum(y_sum) / BATCH)


@triton.jit
def _spread(q_ptr, member, BATCH: tl.constexpr, SAMPLES: tl.constexpr, CHUNK: tl.constexpr):
    """Return mean and standard deviation of the advantage over the batch, in two passes."""
    total, squares = _zero(CHUNK), _zero(CHUNK)
    for first in range(0, BATCH, CHUNK):
        b = first + tl.arange(0, CHUNK)
        total += _advantage(q_ptr, member, b, b < BATCH, BATCH, SAMPLES)
    mean = tl.sum(total) / BATCH
    for first in range(0, BATCH, CHUNK):
        b = first + tl.arange(0, CHUNK)
        apart = tl.where(b < BATCH, _advantage(q_ptr, member, b, b < BATCH, BATCH, SAMPLES) - mean, 0.0)
        squares += apart * apart
    return mean, tl.sqrt(tl.sum(squares) / BATCH)


@triton.jit
def _zero(CHUNK: tl.constexpr):
    return tl.zeros((CHUNK,), tl.float32)


@triton.jit
def _larger(x, y):  # tl.max over a block would drop NaN
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _advantage(q_ptr, member, b, live, BATCH: tl.constexpr, SAMPLES: tl.constexpr):
    """Return Qmin(o, a) - mean_m Qmin(o, a_m) of transitions b; 0 where not live."""
    rows: tl.constexpr = (1 + SAMPLES) * BATCH
    first, second = q_ptr + 2 * member * rows + b, q_ptr + (2 * member + 1) * rows + b
    own = _smaller(tl.load(first, mask=live, other=0.0), tl.load(second, mask=live, other=0.0))
    value = tl.zeros_like(own)
    for m in tl.static_range(1, SAMPLES + 1):
        q0 = tl.load(first + m * BATCH, mask=live, other=0.0)
        value += _smaller(q0, tl.load(second + m * BATCH, mask=live, other=0.0))
    return own - value / SAMPLES
