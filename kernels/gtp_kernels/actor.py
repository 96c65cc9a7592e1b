"""The actor's two losses: draws, teacher, student, losses, and the gradient back through the activations.

Map rows regress Phi_theta(a_t, t, s) on Phi_theta^-(a_u, u, s) (Eq. 17), denoiser rows phi_theta(a_t, t, t) on a
(Eq. 18). Both predictions are r x + (1 - r)(c_skip x + c_out F), with r = s/t for the map and 0 for the denoiser. So
dL/dF = 2 weight (1 - r) c_out (prediction - target) / (A B). The advantage weight of a transition multiplies all of its
gradients alike. `gtp_gradients` applies it, so `gtp_actor` need not wait for the critic. The targets of the map rows
depend on the EMA actor alone: `gtp_teacher` computes them as soon as it has moved.

A block of BM rows reads their transitions and 2 H^2 operands of the hidden weights, twice in `gtp_actor`. That writes a
kept row and 3 H slopes for each of its rows, `gtp_teacher` an action.
"""

import triton
import triton.language as tl

from gtp_kernels import draws, launch, mlp

# Columns of the time networks in a kept row, from the first of them on.
FEATURES_AT = tl.constexpr(launch.TIME_FEATURES_AT)
HIDDEN_AT = tl.constexpr(launch.TIME_HIDDEN_AT)
HIDDEN_DZ_AT = tl.constexpr(launch.TIME_HIDDEN_DZ_AT)
OUTPUT_DZ_AT = tl.constexpr(launch.TIME_OUTPUT_DZ_AT)


@launch.writes("target_ptr", "hidden_ptr")
@triton.jit(do_not_specialize=["offset"])
def gtp_teacher(
    rows_ptr, seed_ptr, step_ptr, offset, points_ptr, grid_ptr, param_ptr, w1_ptr, w2_ptr, target_ptr,
    hidden_ptr, size, stage_length, param_stride, hidden_stride, sigma_min, sigma_data,
    BATCH: tl.constexpr, STAGES_OF_N: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
    AP: tl.constexpr, W: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Write the targets Phi_theta^-(a_u, u, s) of the map rows; grid (ceil(BATCH / BM), S).

    target_ptr float32 (S, BATCH, A) receives them; hidden_ptr (S, BATCH, 2 H) is scratch. param_ptr, w1_ptr and w2_ptr
    are the EMA actor's; the other arguments are those of `gtp_actor`.
    """
    b, member = tl.program_id(0) * BM + tl.arange(0, BM), mlp.wide(tl.program_id(1))
    live, column = b < BATCH, tl.arange(0, AP)[None, :]
    seed, step = tl.load(seed_ptr + member), tl.load(step_ptr) + offset
    source, a, z, _, u, s = _drawn(
        rows_ptr, seed, step, points_ptr, grid_ptr, size, stage_length, b, live, STAGES_OF_N, WIDTH, D, A, AP, W
    )
    ema = param_ptr + member * param_stride
    w1, w2 = w1_ptr + member * hidden_stride, w2_ptr + member * hidden_stride
    target = _teacher(
        a + u[:, None] * z, u, s, source, live, ema, w1, w2, hidden_ptr + (member * BATCH + b) * 2 * H, sigma_min,
        sigma_data, D, A, AP, H, BK, STAGES, PREC, INTERP,
    )  # fmt: skip
    tl.store(target_ptr + (member * BATCH + b)[:, None] * A + column, target, mask=live[:, None] & (column < A))


@launch.writes("act_ptr", "slope_ptr", "loss_ptr")
@triton.jit(do_not_specialize=["offset"])
def gtp_actor(
    rows_ptr, seed_ptr, step_ptr, offset, points_ptr, grid_ptr, target_ptr,
    param_ptr, w1_ptr, w2_ptr, act_ptr, slope_ptr, loss_ptr,
    size, stage_length, param_stride, hidden_stride, sigma_min, sigma_data, lambda_flow,
    BATCH: tl.constexpr, COLUMNS: tl.constexpr, X: tl.constexpr, STAGES_OF_N: tl.constexpr, WIDTH: tl.constexpr,
    STABLE: tl.constexpr, INST_WEIGHT_CAP: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr,
    W: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Run the actor forward and back; grid (2 ceil(BATCH / BM), S), the first half map rows, the second denoiser rows.

    The step is that of step_ptr plus offset. rows_ptr float32 (size, W) is the replay buffer; points_ptr and grid_ptr
    are those of `draws.grid_times`, with STAGES_OF_N stages of WIDTH points; target_ptr holds the map rows' targets
    from `gtp_teacher`. act_ptr (S, 2 BATCH, COLUMNS) receives the kept rows that `launch.actor_saved` lays out, their
    input padded to X columns. slope_ptr (S, 2 BATCH, 3 H) is scratch: the slopes of Mish stay there until the way back,
    which leaves the registers to the products. loss_ptr (S, 2, BATCH) receives both losses of each transition, without
    its advantage weight. STABLE: weights over t of 1/(t - u) and min(INST_WEIGHT_CAP, 1 / c_out^2), else 1.
    """
    tiles: tl.constexpr = (BATCH + BM - 1) // BM
    kind, member = tl.program_id(0) // tiles, mlp.wide(tl.program_id(1))
    b = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    live = b < BATCH
    column = tl.arange(0, AP)[None, :]
    inside = live[:, None] & (column < A)
    seed, step = tl.load(seed_ptr + member), tl.load(step_ptr) + offset
    source, a, z, t, u, s = _drawn(
        rows_ptr, seed, step, points_ptr, grid_ptr, size, stage_length, b, live, STAGES_OF_N, WIDTH, D, A, AP, W
    )

    variance = t * t + sigma_data * sigma_data
    c_in = tl.rsqrt(variance)
    x = a + t[:, None] * z
    target, second, r, share = a, t, tl.zeros((BM,), tl.float32), lambda_flow
    weight = tl.zeros((BM,), tl.float32) + 1.0
    if STABLE:
        weight = variance / (t * t * sigma_data * sigma_data)
        weight = mlp.smaller(weight, INST_WEIGHT_CAP)
    if kind == 0:
        second, r, share = s, s / t, 1.0
        if STABLE:
            weight = 1.0 / (t - u)
        target = tl.load(target_ptr + (member * BATCH + b)[:, None] * A + column, mask=inside, other=0.0)

    row = member * 2 * BATCH + kind * BATCH + b
    acts, slopes = act_ptr + row * COLUMNS, slope_ptr + row * 3 * H
    param = param_ptr + member * param_stride
    w1, w2 = w1_ptr + member * hidden_stride, w2_ptr + member * hidden_stride
    f, slope_t, slope_s = _forward(
        c_in[:, None] * x, t, second, source, live, param, w1, w2, acts, slopes, sigma_min,
        X, D, A, AP, H, BK, STAGES, PREC, INTERP,
    )  # fmt: skip

    c_skip, c_out = sigma_data * sigma_data / variance, t * sigma_data * c_in
    error = r[:, None] * x + (1.0 - r)[:, None] * (c_skip[:, None] * x + c_out[:, None] * f) - target
    error = tl.where(inside, error, 0.0)
    loss = tl.sum(error * error, axis=1) * (weight / A)
    tl.store(loss_ptr + (2 * member + kind) * BATCH + b, loss, mask=live)
    df = (share * (2.0 / (A * BATCH))) * (weight * (1.0 - r) * c_out)[:, None] * error
    _backward(df, slope_t, slope_s, live, param, w1, w2, acts, slopes, X, D, A, AP, H, BK, STAGES, PREC, INTERP)


@triton.jit
def _drawn(
    rows_ptr, seed, step, points_ptr, grid_ptr, size, stage_length, b, live,
    STAGES_OF_N: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """Draw transitions b: where their rows begin, action and noise (BM, AP), and times t, u, s (BM,)."""
    column = tl.arange(0, AP)[None, :]
    bits, bits_n, bits_j, _ = draws.random_bits(seed, step, draws.INDEX, b)
    source = rows_ptr + draws.integer_below(bits, size).to(tl.int64) * W
    t, u, s = draws.grid_times(bits_n, bits_j, step, points_ptr, grid_ptr, stage_length, STAGES_OF_N, WIDTH)
    a = tl.load(source[:, None] + D + column, mask=live[:, None] & (column < A), other=0.0)
    z = tl.where(column < A, draws.normals(seed, step, draws.ACTION_NOISE, b[:, None], column, A), 0.0)
    return source, a, z, t, u, s


@triton.jit
def _forward(
    x, t, s, source, live, param, w1, w2, acts, slopes, sigma_min,
    X: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Return the student's F (BM, AP) and the slopes in its time networks; store what the gradients need."""
    k = tl.arange(0, H)[None, :]
    w0 = param + mlp.TIME_NETS
    b0, b1, b2, w3 = mlp.pointers(w0, A + mlp.EMBEDDINGS + D, H)
    on_time = acts + X + 6 * H + AP
    hidden_t, slope_t = _time_saving(param, t, sigma_min, on_time, 0, live, PREC, INTERP)
    hidden_s, slope_s = _time_saving(param + mlp.TIME_NET, s, sigma_min, on_time, 1, live, PREC, INTERP)
    e = mlp.time_output(param, hidden_t, hidden_s, PREC, INTERP)
    _save_input(acts, x, e, source, live, D, A, PREC, INTERP)
    h, slope0 = mlp.mish_and_slope(_first_layer(x, e, source, live, w0, b0, D, A, H, PREC, INTERP))
    tl.store(slopes[:, None] + k, slope0, mask=live[:, None])
    z2 = mlp.hidden_layers(h, w1, b1, w2, b2, acts + X, live, BK, STAGES, PREC, INTERP, slopes)
    h, slope2 = mlp.mish_and_slope(z2)
    mlp.save(acts[:, None] + X + 2 * H + k, h, live[:, None], PREC, INTERP)
    tl.store(slopes[:, None] + 2 * H + k, slope2, mask=live[:, None])
    w3, b3 = mlp.last_layer(w3, A, AP, H)
    return mlp.action_output(h, w3, b3, PREC, INTERP), slope_t, slope_s


@triton.jit
def _backward(
    df, slope_t, slope_s, live, param, w1, w2, acts, slopes,
    X: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Carry dL/dF (BM, AP) back to every layer; store each dL/dz for the weight gradients."""
    i, k = tl.arange(0, AP), tl.arange(0, H)
    w0 = param + mlp.TIME_NETS
    _, _, _, w3 = mlp.pointers(w0, A + mlp.EMBEDDINGS + D, H)
    mlp.save(acts[:, None] + X + 6 * H + i[None, :], df, live[:, None], PREC, INTERP)
    tl.debug_barrier()  # other threads of this block wrote the slopes
    slope = tl.load(slopes[:, None] + 2 * H + k[None, :], mask=live[:, None], other=0.0)
    tile = tl.load(w3 + k[None, :] * A + i[:, None], mask=(i < A)[:, None], other=0.0)
    dz2 = slope * mlp.edge_product(df, tile, tl.zeros((df.shape[0], H), tl.float32), PREC, INTERP)
    dz0 = mlp.hidden_layers_backward(dz2, w1, w2, acts + X + 3 * H, slopes, live, BK, STAGES, PREC, INTERP)
    on_time = acts + X + 6 * H + AP
    _time_backward(param, w0 + A * H, dz0, slope_t, slope_s, on_time, live, H, PREC, INTERP)


@triton.jit
def _teacher(
    x, u, s, source, live, param, w1, w2, kept, sigma_min, sigma_data,
    D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Return Phi_theta^-(x, u, s), (BM, AP); where u = s it is x itself."""
    w0 = param + mlp.TIME_NETS
    b0, b1, b2, w3 = mlp.pointers(w0, A + mlp.EMBEDDINGS + D, H)
    variance = u * u + sigma_data * sigma_data
    c_in = tl.rsqrt(variance)
    e = mlp.time_embeddings(param, u, s, sigma_min, PREC, INTERP)
    h = mlp.mish(_first_layer(c_in[:, None] * x, e, source, live, w0, b0, D, A, H, PREC, INTERP))
    h = mlp.mish(mlp.hidden_layers(h, w1, b1, w2, b2, kept, live, BK, STAGES, PREC, INTERP))
    w3, b3 = mlp.last_layer(w3, A, AP, H)
    f = mlp.action_output(h, w3, b3, PREC, INTERP)
    denoised = (sigma_data * sigma_data / variance)[:, None] * x + (u * sigma_data * c_in)[:, None] * f
    ratio = (s / u)[:, None]
    return tl.where(ratio == 1.0, x, ratio * x + (1.0 - ratio) * denoised)


@triton.jit
def _first_layer(
    x, e, source, live, w0, b0, D: tl.constexpr, A: tl.constexpr, H: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Return the first pre-activation of F(x, e_t, e_s, o), (BM, H), as one product for each part of the input."""
    z = tl.zeros((x.shape[0], H), tl.float32) + tl.load(b0 + tl.arange(0, H))[None, :]
    z = mlp.add_columns(z, x, w0, A, PREC, INTERP)
    z = mlp.add_columns(z, e, w0 + A * H, mlp.EMBEDDINGS, PREC, INTERP)
    return mlp.add_rows_of(z, source, live, w0 + (A + mlp.EMBEDDINGS) * H, D, PREC, INTERP)


@triton.jit
def _save_input(acts, x, e, source, live, D: tl.constexpr, A: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Store [x, e_t, e_s, o], the first layer's input, in the order of its weight's rows."""
    column, i = tl.arange(0, x.shape[1])[None, :], tl.arange(0, mlp.EMBEDDINGS)[None, :]
    mlp.save(acts[:, None] + column, x, live[:, None] & (column < A), PREC, INTERP)
    mlp.save(acts[:, None] + A + i, e, live[:, None], PREC, INTERP)
    for first in tl.static_range(0, D, mlp.CHUNK):
        j = first + tl.arange(0, mlp.CHUNK)[None, :]
        inside = live[:, None] & (j < D)
        obs = tl.load(source[:, None] + j, mask=inside, other=0.0)
        mlp.save(acts[:, None] + A + mlp.EMBEDDINGS + j, obs, inside, PREC, INTERP)


@triton.jit
def _time_saving(net, time, sigma_min, saved, S: tl.constexpr, live, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return a time network's activated hidden layer (BM, 32) and its slope; store what the gradients need.

    S is 0 for the network of t and 1 for that of s.
    """
    i, j = tl.arange(0, mlp.TIME_WIDTH)[None, :], tl.arange(0, mlp.TIME_HIDDEN)[None, :]
    features = mlp.sinusoids(time, sigma_min)
    h, slope = mlp.mish_and_slope(mlp.time_hidden(net, features, PREC, INTERP))
    mlp.save(saved[:, None] + FEATURES_AT + mlp.TIME_WIDTH * S + i, features, live[:, None], PREC, INTERP)
    mlp.save(saved[:, None] + HIDDEN_AT + mlp.TIME_HIDDEN * S + j, h, live[:, None], PREC, INTERP)
    return h, slope


@triton.jit
def _time_backward(
    nets, weight, dz0, slope_t, slope_s, saved, live, H: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr
):
    """Carry dL/dz0 back through both embeddings; `weight` points at their rows of the first layer's weight."""
    i, j, k = tl.arange(0, mlp.EMBEDDINGS), tl.arange(0, mlp.TIME_HIDDEN), tl.arange(0, H)
    tile = tl.load(weight + i[None, :] * H + k[:, None])
    de = mlp.edge_product(dz0, tile, tl.zeros((dz0.shape[0], mlp.EMBEDDINGS), tl.float32), PREC, INTERP)
    mlp.save(saved[:, None] + OUTPUT_DZ_AT + i[None, :], de, live[:, None], PREC, INTERP)
    for S in tl.static_range(2):
        own = (i // mlp.TIME_WIDTH == S)[:, None]
        at = nets + S * mlp.TIME_NET + mlp.TIME_W1 + j[None, :] * mlp.TIME_WIDTH + (i % mlp.TIME_WIDTH)[:, None]
        tile = tl.load(at, mask=own, other=0.0)
        dh = mlp.edge_product(de, tile, tl.zeros((dz0.shape[0], mlp.TIME_HIDDEN), tl.float32), PREC, INTERP)
        dh = dh * (slope_t if S == 0 else slope_s)
        mlp.save(saved[:, None] + HIDDEN_DZ_AT + mlp.TIME_HIDDEN * S + j[None, :], dh, live[:, None], PREC, INTERP)
