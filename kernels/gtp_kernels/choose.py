"""One of each observation's candidates by the smaller of its two values, perhaps with Gumbel noise on top (SPEC 6)."""

import triton
import triton.language as tl


@triton.jit
def gtp_choose(
    action_ptr, q_ptr, gumbel_ptr, chosen_ptr, observations,
    CANDIDATES: tl.constexpr, PADDED: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, NOISY: tl.constexpr,
):  # fmt: skip
    """Write the action with the largest min(Q1, Q2) (+ gumbel with NOISY) of each observation; grid (B, S).

    action_ptr float32 (S, B CANDIDATES, A); q_ptr (S, 2, B CANDIDATES); gumbel_ptr (S, B CANDIDATES); chosen_ptr
    (S, B, A). Of equal values the first wins; a value that is no number counts as the largest, as in the twin.
    """
    b, member = tl.program_id(0), tl.program_id(1)
    rows = observations * CANDIDATES
    i = tl.arange(0, PADDED)
    r, live = b * CANDIDATES + i, i < CANDIDATES
    q0 = tl.load(q_ptr + 2 * member * rows + r, mask=live, other=0.0)
    q1 = tl.load(q_ptr + (2 * member + 1) * rows + r, mask=live, other=0.0)
    q = tl.minimum(q0, q1, propagate_nan=tl.PropagateNan.ALL)
    if NOISY:
        q += tl.load(gumbel_ptr + member * rows + r, mask=live, other=0.0)
    # argmax compares, and no comparison with NaN holds: which it would return depends on how threads lie.
    q = tl.where(q != q, float("inf"), q)
    best = tl.argmax(tl.where(live, q, float("-inf")), axis=0)
    column = tl.arange(0, AP)
    action = tl.load(action_ptr + (member * rows + b * CANDIDATES + best) * A + column, mask=column < A)
    tl.store(chosen_ptr + (member * observations + b) * A + column, action, mask=column < A)
