"""Clip, Adam and the slow copy in one pass over a flat buffer; the last launch of a step also records and counts it."""

import triton
import triton.language as tl

from gtp_kernels import mlp
from gtp_kernels.draws import turn


@triton.jit
def gtp_update(
    param_ptr, grad_ptr, first_ptr, second_ptr, slow_ptr, pair_ptr, slow_pair_ptr,
    square_ptr, step_ptr, lr_ptr, metric_ptr, sum_ptr, bad_ptr, count_ptr,
    largest_norm, rate, total_steps,
    SIZE: tl.constexpr, HEADS: tl.constexpr, PARTIALS: tl.constexpr, PADDED: tl.constexpr, NORM: tl.constexpr,
    EVERY: tl.constexpr, START: tl.constexpr, COSINE: tl.constexpr, RECORD: tl.constexpr, METRICS: tl.constexpr,
    STEP_STRIDE: tl.constexpr, PAIR: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Take one clipped Adam step on each row of a buffer, in place; grid (ceil(SIZE / BLOCK), S * HEADS).

    All buffers float32 (S HEADS, SIZE); square_ptr (S, PARTIALS) sums to the squared norm of a member's gradient;
    step_ptr int64 counts from 0, at member * STEP_STRIDE. The slow copy moves by `rate` at
    steps from START on that EVERY divides. pair_ptr and slow_pair_ptr, (S HEADS, 2, H, H), receive the operand copies
    of the two hidden weights that begin at PAIR, unless PREC is "fp32". metric_ptr (S, 16) receives the norm at NORM.
    With RECORD the metrics are added to sum_ptr, float32 (S, METRICS), a first non-finite one noted in bad_ptr, and
    count_ptr counted on.
    """
    row = tl.program_id(1)
    member = row // HEADS
    p = tl.arange(0, PADDED)
    squares = tl.load(square_ptr + member * PARTIALS + p, mask=p < PARTIALS, other=0.0)
    norm = tl.sqrt(tl.sum(squares))
    # A norm that is not finite must reach the metrics and the parameters, where the guard sees it.
    scale = tl.where(largest_norm > 0.0, _clip(largest_norm, norm), 1.0)
    step = tl.load(step_ptr + member * STEP_STRIDE)
    count = (step + 1).to(tl.float32)
    correction1 = 1.0 - tl.exp2(count * -0.15200309344504995)  # log2 of 0.9
    correction2 = 1.0 - tl.exp2(count * -0.0014434168696687174)  # log2 of 0.999
    lr = tl.load(lr_ptr + member)
    if COSINE:
        cos, _ = turn(step.to(tl.float32) / (2.0 * total_steps))
        lr = lr * (0.5 + 0.5 * cos)

    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    at = row * SIZE + i
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0) * scale
    first = tl.load(first_ptr + at, mask=inside, other=0.0)
    first = first + (grad - first) * 0.1
    second = tl.load(second_ptr + at, mask=inside, other=0.0) * 0.999 + grad * grad * 0.001
    denominator = tl.sqrt(second) * tl.rsqrt(correction2) + 1e-8
    param = tl.load(param_ptr + at, mask=inside, other=0.0) - (first / denominator) * (lr / correction1)
    slow = tl.load(slow_ptr + at, mask=inside, other=0.0)
    due = (step >= START) & (step % EVERY == 0)
    slow = tl.where(due, slow + rate * (param - slow), slow)
    tl.store(first_ptr + at, first, mask=inside)
    tl.store(second_ptr + at, second, mask=inside)
    tl.store(param_ptr + at, param, mask=inside)
    tl.store(slow_ptr + at, slow, mask=inside)
    if PREC != "fp32":
        _copy_operands(pair_ptr, slow_pair_ptr, row, i - PAIR, param, slow, H, PREC, INTERP)
    if (tl.program_id(0) == 0) & (row % HEADS == 0):
        tl.store(metric_ptr + member * 16 + NORM, norm)
        if RECORD:
            _record(metric_ptr, sum_ptr, bad_ptr, member, norm, step, NORM, METRICS)
            if member == 0:
                tl.store(count_ptr, step + 1)


@triton.jit
def _copy_operands(
    pair_ptr, slow_pair_ptr, row, i, param, slow, H: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr
):  # fmt: skip
    """Write the rounded copies of what belongs to a hidden weight; i counts from the first of the first one."""
    gap: tl.constexpr = H * H + H  # from the first hidden weight to the second, its bias between them
    in_first = (i >= 0) & (i < H * H)
    in_second = (i >= gap) & (i < gap + H * H)
    copy = row * 2 * H * H + tl.where(in_first, i, i - gap + H * H)
    mlp.save(pair_ptr + copy, param, in_first | in_second, PREC, INTERP)
    mlp.save(slow_pair_ptr + copy, slow, in_first | in_second, PREC, INTERP)


@triton.jit
def _clip(largest_norm, norm):
    return tl.minimum(largest_norm / (norm + 1e-6), 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _record(metric_ptr, sum_ptr, bad_ptr, member, norm, step, NORM: tl.constexpr, METRICS: tl.constexpr):
    q = tl.arange(0, 16)
    inside = q < METRICS
    metric = tl.load(metric_ptr + member * 16 + q, mask=inside & (q != NORM), other=0.0)
    metric = tl.where(q == NORM, norm, metric)
    at = member * METRICS + q
    bad = tl.load(bad_ptr + at, mask=inside, other=0)
    finite = tl.abs(metric) < float("inf")
    tl.store(bad_ptr + at, tl.where((bad < 0) & (finite == 0), step, bad), mask=inside)
    tl.store(sum_ptr + at, tl.load(sum_ptr + at, mask=inside, other=0.0) + metric, mask=inside)
