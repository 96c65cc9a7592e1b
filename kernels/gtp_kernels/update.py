"""Clip by the global norm, Adam and the EMA copy (EMA or target) in one pass over a flat buffer.

A launch reads five floats a parameter (gradient, two moments, parameter, EMA copy) and writes four, and for each hidden
weight its two operand copies. At a step whose EMA is not due it touches neither the EMA nor its copies, so that what
reads them need not wait.
"""

import triton
import triton.language as tl

from gtp_kernels import launch, mlp
from gtp_kernels.draws import cos_sin


@launch.writes(
    "param_ptr", "exp_avg_ptr", "exp_avg_sq_ptr", "ema_ptr", "hidden_weights_ptr", "ema_hidden_weights_ptr", "norm_ptr"
)
@triton.jit(do_not_specialize=["offset"])
def gtp_update(
    param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, hidden_weights_ptr, ema_hidden_weights_ptr,
    square_ptr, step_ptr, offset, lr_ptr, norm_ptr, largest_norm, rate, total_steps,
    SIZE: tl.constexpr, HEADS: tl.constexpr, PARTIALS: tl.constexpr, PADDED: tl.constexpr,
    EVERY: tl.constexpr, START: tl.constexpr, COSINE: tl.constexpr, METRIC_STRIDE: tl.constexpr,
    HIDDEN_WEIGHTS: tl.constexpr, H: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, LOG2_BETA1: tl.constexpr, LOG2_BETA2: tl.constexpr,
    ADAM_EPS: tl.constexpr, CLIP_EPS: tl.constexpr, BLOCK: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Take one clipped Adam step on each row of a buffer, in place; grid (ceil(SIZE / BLOCK), S * HEADS).

    All buffers are float32 (S HEADS, SIZE). square_ptr (S, PARTIALS) sums to the squared norm of a member's gradient.
    The step is that of step_ptr, int64, plus offset, and counts from 0. The EMA copy moves by `rate` at the steps from
    START on that EVERY divides; for a step that is known to be none of them, ema_ptr and ema_hidden_weights_ptr are
    None. hidden_weights_ptr and ema_hidden_weights_ptr, (S HEADS, 2, H, H), receive the operand copies of the two
    hidden weights, which begin at HIDDEN_WEIGHTS in a row; with PREC "fp32" there are none. norm_ptr receives the norm
    of member m at m * METRIC_STRIDE.
    """
    row = mlp.wide(tl.program_id(1))
    member = row // HEADS
    p = tl.arange(0, PADDED)
    squares = tl.load(square_ptr + member * PARTIALS + p, mask=p < PARTIALS, other=0.0)
    norm = tl.sqrt(tl.sum(squares))
    # A norm that is not finite must reach the metrics and the parameters, where the guard sees it.
    scale = tl.where(largest_norm > 0.0, mlp.smaller(largest_norm / (norm + CLIP_EPS), 1.0), 1.0)
    step = tl.load(step_ptr) + offset
    count = (step + 1).to(tl.float32)
    correction1 = 1.0 - tl.exp2(count * LOG2_BETA1)
    correction2 = 1.0 - tl.exp2(count * LOG2_BETA2)
    lr = tl.load(lr_ptr + member)
    if COSINE:
        cos, _ = cos_sin(step.to(tl.float32) / (2.0 * total_steps))
        lr = lr * (0.5 + 0.5 * cos)

    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    first = row * SIZE
    grad = tl.load(grad_ptr + first + i, mask=inside, other=0.0) * scale
    exp_avg = tl.load(exp_avg_ptr + first + i, mask=inside, other=0.0)
    exp_avg = exp_avg + (grad - exp_avg) * (1.0 - BETA1)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + first + i, mask=inside, other=0.0) * BETA2 + grad * grad * (1.0 - BETA2)
    denominator = tl.sqrt(exp_avg_sq) * tl.rsqrt(correction2) + ADAM_EPS
    param = tl.load(param_ptr + first + i, mask=inside, other=0.0) - (exp_avg / denominator) * (lr / correction1)
    tl.store(exp_avg_ptr + first + i, exp_avg, mask=inside)
    tl.store(exp_avg_sq_ptr + first + i, exp_avg_sq, mask=inside)
    tl.store(param_ptr + first + i, param, mask=inside)
    if PREC != "fp32":
        _copy_operands(hidden_weights_ptr, row, i - HIDDEN_WEIGHTS, param, H, PREC, INTERP)
    if ema_ptr is not None:
        ema = tl.load(ema_ptr + first + i, mask=inside, other=0.0)
        due = (step >= START) & (step % EVERY == 0)
        ema = tl.where(due, ema + rate * (param - ema), ema)
        tl.store(ema_ptr + first + i, ema, mask=inside)
        if PREC != "fp32":
            _copy_operands(ema_hidden_weights_ptr, row, i - HIDDEN_WEIGHTS, ema, H, PREC, INTERP)
    if (tl.program_id(0) == 0) & (row % HEADS == 0):
        tl.store(norm_ptr + member * METRIC_STRIDE, norm)


@triton.jit
def _copy_operands(
    copies_ptr, row, i, values, H: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Write the rounded copies of those values that are hidden weights; i counts from the first of these."""
    gap: tl.constexpr = H * H + H  # from the first hidden weight to the second, its bias between them
    in_first = (i >= 0) & (i < H * H)
    in_second = (i >= gap) & (i < gap + H * H)
    copy = row * 2 * H * H + tl.where(in_first, i, i - gap + H * H)
    mlp.save(copies_ptr + copy, values, in_first | in_second, PREC, INTERP)
