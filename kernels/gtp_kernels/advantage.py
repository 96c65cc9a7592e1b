"""The reductions over a batch: the advantage weights, and a step's metrics but the norms; and their sums over steps.

w = exp(eta max(0, A) / (std(A) + eps)), at most cap (Eq. 14), with A = Qmin(o, a) - mean_m Qmin(o, a_m). It reads the
critic's values and both losses of each transition, a few floats each, twice for the deviation, and writes one weight a
transition and 11 metrics a member.
"""

import triton
import triton.language as tl

from gtp_kernels import launch, mlp


@launch.writes("weight_ptr", "metric_ptr")
@triton.jit
def gtp_advantage(
    q_ptr, loss_ptr, critic_q_ptr, target_ptr, eta_ptr, weight_ptr, metric_ptr, cap, lambda_flow,
    BATCH: tl.constexpr, SAMPLES: tl.constexpr, BC: tl.constexpr, CHUNK: tl.constexpr, EPS: tl.constexpr,
    METRIC_STRIDE: tl.constexpr, ACTOR_LOSS: tl.constexpr, TRAJ_LOSS: tl.constexpr, INST_LOSS: tl.constexpr,
    CRITIC_LOSS: tl.constexpr, Q: tl.constexpr, TD_TARGET: tl.constexpr, ADVANTAGE: tl.constexpr,
    ADVANTAGE_STD: tl.constexpr, WEIGHT: tl.constexpr, WEIGHT_MAX: tl.constexpr, EFFECTIVE_SHARE: tl.constexpr,
):  # fmt: skip
    """Write the weights to weight_ptr, float32 (S, BATCH), and the metrics to metric_ptr; grid (S,).

    q_ptr float32 (S, 2, (1 + SAMPLES) BATCH): the updated heads' values at (o, a), then at the policy's samples in
    blocks of BATCH. loss_ptr (S, 2, BATCH): the actor's two losses. critic_q_ptr (S, 2, BATCH) and target_ptr (S,
    BATCH): what the critic regressed. metric_ptr (S, METRIC_STRIDE); each metric's constant is its column. With BC only
    the three losses are read and written.
    """
    member = mlp.wide(tl.program_id(0))
    metric = metric_ptr + member * METRIC_STRIDE
    mean, std = 0.0, 1.0
    if not BC:
        _critic_metrics(critic_q_ptr, target_ptr, member, metric, CRITIC_LOSS, Q, TD_TARGET, BATCH, CHUNK)
        mean, std = _spread(q_ptr, member, BATCH, SAMPLES, CHUNK)
        tl.store(metric + ADVANTAGE, mean)
        tl.store(metric + ADVANTAGE_STD, std)
    w_sum, w_square, w_max, map_sum, inst_sum = _zero(CHUNK), _zero(CHUNK), _zero(CHUNK), _zero(CHUNK), _zero(CHUNK)
    for first in range(0, BATCH, CHUNK):
        b = first + tl.arange(0, CHUNK)
        live = b < BATCH
        w = tl.where(live, 1.0, 0.0)
        if not BC:
            gain = _advantage(q_ptr, member, b, live, BATCH, SAMPLES)
            gain = mlp.larger(gain, 0.0)
            w = tl.exp(tl.load(eta_ptr + member) * gain / (std + EPS))
            w = tl.where(live, tl.where((cap > 0.0) & (w > cap), cap, w), 0.0)
            tl.store(weight_ptr + member * BATCH + b, w, mask=live)
        w_sum += w
        w_square += w * w
        w_max = mlp.larger(w_max, w)
        map_sum += w * tl.load(loss_ptr + 2 * member * BATCH + b, mask=live, other=0.0)
        inst_sum += w * tl.load(loss_ptr + (2 * member + 1) * BATCH + b, mask=live, other=0.0)
    traj, inst = tl.sum(map_sum) / BATCH, tl.sum(inst_sum) / BATCH
    tl.store(metric + ACTOR_LOSS, traj + lambda_flow * inst)
    tl.store(metric + TRAJ_LOSS, traj)
    tl.store(metric + INST_LOSS, inst)
    if not BC:
        w_mean = tl.sum(w_sum) / BATCH
        tl.store(metric + WEIGHT, w_mean)
        tl.store(metric + WEIGHT_MAX, tl.reduce(w_max, 0, mlp.larger))
        tl.store(metric + EFFECTIVE_SHARE, w_mean * w_mean / (tl.sum(w_square) / BATCH))


@triton.jit
def _critic_metrics(
    critic_q_ptr, target_ptr, member, metric,
    CRITIC_LOSS: tl.constexpr, Q: tl.constexpr, TD_TARGET: tl.constexpr, BATCH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the critic's loss, the mean Q and the mean target."""
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
    tl.store(metric + CRITIC_LOSS, tl.sum(td) / BATCH)
    tl.store(metric + Q, tl.sum(q_sum) / (2 * BATCH))
    tl.store(metric + TD_TARGET, tl.sum(y_sum) / BATCH)


@triton.jit
def _spread(q_ptr, member, BATCH: tl.constexpr, SAMPLES: tl.constexpr, CHUNK: tl.constexpr):
    """Return the advantage's mean and standard deviation over the batch, in two passes."""
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
def _advantage(q_ptr, member, b, live, BATCH: tl.constexpr, SAMPLES: tl.constexpr):
    """Return Qmin(o, a) - mean_m Qmin(o, a_m) of transitions b; 0 where not live."""
    rows: tl.constexpr = (1 + SAMPLES) * BATCH
    first, second = q_ptr + 2 * member * rows + b, q_ptr + (2 * member + 1) * rows + b
    own = mlp.smaller(tl.load(first, mask=live, other=0.0), tl.load(second, mask=live, other=0.0))
    value = tl.zeros_like(own)
    for m in tl.static_range(1, SAMPLES + 1):
        q0 = tl.load(first + m * BATCH, mask=live, other=0.0)
        value += mlp.smaller(q0, tl.load(second + m * BATCH, mask=live, other=0.0))
    return own - value / SAMPLES


@triton.jit
def _zero(CHUNK: tl.constexpr):
    return tl.zeros((CHUNK,), tl.float32)


@launch.writes("sum_ptr", "bad_ptr", "count_ptr")
@triton.jit(do_not_specialize=["offset"])
def gtp_record(
    metric_ptr, sum_ptr, bad_ptr, step_ptr, offset, count_ptr,
    MEMBERS: tl.constexpr, PADDED: tl.constexpr, METRICS: tl.constexpr, METRIC_STRIDE: tl.constexpr,
):  # fmt: skip
    """Add a step's metrics to their sums and note the step of a first non-finite one; grid (1,).

    metric_ptr float32 (S, METRIC_STRIDE) holds METRICS of each of MEMBERS members. sum_ptr float32 (S, METRICS)
    receives the sums, bad_ptr int64 (S, METRICS) the step. The step is that of step_ptr plus offset. count_ptr, the
    same number as step_ptr, receives the next step's; None leaves it to a later launch.
    """
    member, q = tl.arange(0, PADDED)[:, None], tl.arange(0, METRIC_STRIDE)[None, :]
    inside, at = (member < MEMBERS) & (q < METRICS), member * METRICS + q
    step = tl.load(step_ptr) + offset
    metric = tl.load(metric_ptr + member * METRIC_STRIDE + q, mask=inside, other=0.0)
    bad = tl.load(bad_ptr + at, mask=inside, other=0)
    finite = tl.abs(metric) < float("inf")
    tl.store(bad_ptr + at, tl.where((bad < 0) & (finite == 0), step, bad), mask=inside)
    tl.store(sum_ptr + at, tl.load(sum_ptr + at, mask=inside, other=0.0) + metric, mask=inside)
    if count_ptr is not None:
        tl.debug_barrier()  # every thread has read the step
        tl.store(count_ptr, step + 1)
