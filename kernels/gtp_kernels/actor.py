"""The actor's two losses, forward and closed-form gradient in one pass, backward through the activations.

Map rows regress Phi_theta(a_t, t, s) on Phi_theta^-(a_u, u, s) (Eq. 17), denoiser rows phi_theta(a_t, t, t) on a
(Eq. 18). Both predictions are r x + (1 - r)(c_skip x + c_out F), with r = s/t for the map and 0 for the denoiser, so
that dL/dF = 2 weight (1 - r) c_out (prediction - target) / (A B). The advantage weight of a transition multiplies all
its gradients alike, so it is left to the weight gradients: this launch waits for no critic.
"""

import triton
import triton.language as tl

from gtp_kernels import draws, mlp


@triton.jit
def gtp_actor(
    rows_ptr, seed_ptr, step_ptr, points_ptr, grid_ptr,
    param_ptr, w1_ptr, w2_ptr, slow_ptr, slow1_ptr, slow2_ptr, act_ptr, slope_ptr, loss_ptr,
    size, stage_length, param_stride, pair_stride, sigma_min, sigma_data, lambda_flow,
    BATCH: tl.constexpr, COLUMNS: tl.constexpr, X: tl.constexpr, STAGES_OF_N: tl.constexpr, WIDTH: tl.constexpr,
    STABLE: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Fill the rows of `acts`; grid (2 ceil(BATCH / BM), S), the first half map rows, the second denoiser rows.

    rows_ptr float32 (size, W) is the replay buffer. act_ptr (S, 2 BATCH, COLUMNS) receives [x (X), h0, h1, h2, dz0,
    dz1, dz2 (H each), dz3 (AP), then of the time networks, each for t and for s: sinusoids (16), hidden (32), its dz
    (32), dz of the embedding (16)]; slope_ptr (S, 2 BATCH, 3 H) is scratch, where the slopes of Mish wait for the way
    back and leave their registers to the products; loss_ptr (S, 2, BATCH) the two losses of each transition, unweighted
    by its advantage.
    """
    tiles: tl.constexpr = (BATCH + BM - 1) // BM
    kind, member = tl.program_id(0) // tiles, tl.program_id(1)
    b = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    live = b < BATCH
    column = tl.arange(0, AP)[None, :]
    seed, step = tl.load(seed_ptr + member), tl.load(step_ptr)
    bits, bits_n, bits_j, _ = draws.words(seed, step, draws.INDEX, b)
    source = rows_ptr + draws.below(bits, size).to(tl.int64) * W
    t, u, s = draws.times(bits_n, bits_j, step, points_ptr, grid_ptr, stage_length, STAGES_OF_N, WIDTH)
    inside = live[:, None] & (column < A)
    a = tl.load(source[:, None] + D + column, mask=inside, other=0.0)
    z = tl.where(column < A, draws.normals(seed, step, draws.ACTION_NOISE, b[:, None], column, A), 0.0)

    variance = t * t + sigma_data * sigma_data
    c_in = tl.rsqrt(variance)
    x = a + t[:, None] * z
    target, second, r, share = a, t, tl.zeros((BM,), tl.float32), lambda_flow
    weight = tl.zeros((BM,), tl.float32) + 1.0
    if STABLE:
        weight = variance / (t * t * sigma_data * sigma_data)
        weight = tl.minimum(weight, 400.0, propagate_nan=tl.PropagateNan.ALL)
    if kind == 0:
        second, r, share = s, s / t, 1.0
        if STABLE:
            weight = 1.0 / (t - u)
        slow = slow_ptr + member * param_stride
        slow1, slow2 = slow1_ptr + member * pair_stride, slow2_ptr + member * pair_stride
        target = _teacher(
            a + u[:, None] * z, u, s, source, live, slow, slow1, slow2, sigma_min, sigma_data,
            D, A, AP, H, BN, STAGES, PREC, INTERP,
        )  # fmt: skip

    row = member * 2 * BATCH + kind * BATCH + b
    acts, slopes = act_ptr + row.to(tl.int64) * COLUMNS, slope_ptr + row * 3 * H
    param = param_ptr + member * param_stride
    w1, w2 = w1_ptr + member * pair_stride, w2_ptr + member * pair_stride
    f, slope_t, slope_s = _forward(
        c_in[:, None] * x, t, second, source, live, param, w1, w2, acts, slopes, sigma_min,
        X, D, A, AP, H, BN, STAGES, PREC, INTERP,
    )  # fmt: skip

    c_skip, c_out = sigma_data * sigma_data / variance, t * sigma_data * c_in
    error = r[:, None] * x + (1.0 - r)[:, None] * (c_skip[:, None] * x + c_out[:, None] * f) - target
    error = tl.where(inside, error, 0.0)
    loss = tl.sum(error * error, axis=1) * (weight / A)
    tl.store(loss_ptr + (2 * member + kind) * BATCH + b, loss, mask=live)
    df = (share * (2.0 / (A * BATCH))) * (weight * (1.0 - r) * c_out)[:, None] * error
    _backward(
        df, slope_t, slope_s, live, param, w1, w2, acts, slopes, X, D, A, AP, H, BN, STAGES, PREC, INTERP
    )  # fmt: skip


@triton.jit
def _forward(
    x, t, s, source, live, param, w1, w2, acts, slopes, sigma_min,
    X: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Return F (BM, AP) of the student and the slopes in its time networks; keep what its gradients need."""
    k = tl.arange(0, H)[None, :]
    w0 = param + mlp.TIME_NETS
    b0, b1, b2, w3 = mlp.layers(w0, A + 32 + D, H)
    on_time = acts + X + 6 * H + AP
    hidden_t, slope_t = _time_saving(param, t, sigma_min, on_time, 0, live, PREC, INTERP)
    hidden_s, slope_s = _time_saving(param + mlp.TIME_NET, s, sigma_min, on_time, 1, live, PREC, INTERP)
    e = mlp.time_output(param, hidden_t, hidden_s, PREC, INTERP)
    _save_input(acts, x, e, source, live, D, A, PREC, INTERP)
    h, slope0 = mlp.mish_and_slope(_first_layer(x, e, source, live, w0, b0, D, A, H, PREC, INTERP))
    mlp.save(acts[:, None] + X + k, h, live[:, None], PREC, INTERP)
    tl.store(slopes[:, None] + H + k, slope0, mask=live[:, None])
    z2 = mlp.hidden_pair_saving(h, w1, b1, w2, b2, acts + X + H, slopes, live, BN, STAGES, PREC, INTERP)
    h, slope2 = mlp.mish_and_slope(z2)
    mlp.save(acts[:, None] + X + 2 * H + k, h, live[:, None], PREC, INTERP)
    tl.store(slopes[:, None] + 2 * H + k, slope2, mask=live[:, None])
    return mlp.action_output(h, w3, w3 + H * A, A, AP, PREC, INTERP), slope_t, slope_s


@triton.jit
def _backward(
    df, slope_t, slope_s, live, param, w1, w2, acts, slopes,
    X: tl.constexpr, D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Carry dL/dF (BM, AP) back to every layer; keep each dL/dz for the weight gradients."""
    i, k = tl.arange(0, AP), tl.arange(0, H)
    w0 = param + mlp.TIME_NETS
    _, _, _, w3 = mlp.layers(w0, A + 32 + D, H)
    mlp.save(acts[:, None] + X + 6 * H + i[None, :], df, live[:, None], PREC, INTERP)
    tl.debug_barrier()  # the slopes were written by other threads of this block
    tile = tl.load(w3 + k[None, :] * A + i[:, None], mask=(i < A)[:, None], other=0.0)
    dz2 = mlp.edge_product(df, tile, tl.zeros((df.shape[0], H), tl.float32), PREC, INTERP)
    dz2 = dz2 * tl.load(slopes[:, None] + 2 * H + k[None, :], mask=live[:, None], other=0.0)
    mlp.save(acts[:, None] + X + 5 * H + k[None, :], dz2, live[:, None], PREC, INTERP)
    back = mlp.hidden_pair_backward(dz2, w1, w2, acts + X + 4 * H, slopes, live, BN, STAGES, PREC, INTERP)
    dz0 = back * tl.load(slopes[:, None] + H + k[None, :], mask=live[:, None], other=0.0)
    mlp.save(acts[:, None] + X + 3 * H + k[None, :], dz0, live[:, None], PREC, INTERP)
    on_time = acts + X + 6 * H + AP
    _time_backward(param, w0 + A * H, dz0, slope_t, slope_s, on_time, live, H, PREC, INTERP)


@triton.jit
def _teacher(
    x, u, s, source, live, param, w1, w2, sigma_min, sigma_data,
    D: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Return Phi_theta^-(a_u, u, s), (BM, AP); where u = s it is a_u itself."""
    w0 = param + mlp.TIME_NETS
    b0, b1, b2, w3 = mlp.layers(w0, A + 32 + D, H)
    variance = u * u + sigma_data * sigma_data
    c_in = tl.rsqrt(variance)
    e = mlp.time_embeddings(param, u, s, sigma_min, PREC, INTERP)
    h = mlp.mish(_first_layer(c_in[:, None] * x, e, source, live, w0, b0, D, A, H, PREC, INTERP))
    h = mlp.mish(mlp.hidden_pair(h, w1, b1, w2, b2, BN, STAGES, PREC, INTERP))
    f = mlp.action_output(h, w3, w3 + H * A, A, AP, PREC, INTERP)
    denoised = (sigma_data * sigma_data / variance)[:, None] * x + (u * sigma_data * c_in)[:, None] * f
    ratio = (s / u)[:, None]
    return tl.where(ratio == 1.0, x, ratio * x + (1.0 - ratio) * denoised)


@triton.jit
def _first_layer(
    x, e, source, live, w0, b0, D: tl.constexpr, A: tl.constexpr, H: tl.constexpr, PREC: tl.constexpr,
    INTERP: tl.constexpr,
):  # fmt: skip
    """Return the first pre-activation of F(x, e_t, e_s, o): one product for each part of the input."""
    z = tl.zeros((x.shape[0], H), tl.float32) + tl.load(b0 + tl.arange(0, H))[None, :]
    z = mlp.add_columns(z, x, w0, A, PREC, INTERP)
    z = mlp.add_columns(z, e, w0 + A * H, 32, PREC, INTERP)
    return mlp.add_rows_of(z, source, live, w0 + (A + 32) * H, D, PREC, INTERP)


@triton.jit
def _save_input(
    acts, x, e, source, live, D: tl.constexpr, A: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr
):  # fmt: skip
    """Keep [x, e_t, e_s, o], the first layer's input, in the order of its weight's rows."""
    column, i = tl.arange(0, x.shape[1])[None, :], tl.arange(0, 32)[None, :]
    mlp.save(acts[:, None] + column, x, live[:, None] & (column < A), PREC, INTERP)
    mlp.save(acts[:, None] + A + i, e, live[:, None], PREC, INTERP)
    for first in tl.static_range(0, D, 32):
        j = first + tl.arange(0, 32)[None, :]
        inside = live[:, None] & (j < D)
        obs = tl.load(source[:, None] + j, mask=inside, other=0.0)
        mlp.save(acts[:, None] + A + 32 + j, obs, inside, PREC, INTERP)


@triton.jit
def _time_saving(net, time, sigma_min, saved, S: tl.constexpr, live, PREC: tl.constexpr, INTERP: tl.constexpr):
    """Return a time network's activated hidden layer (BM, 32) and its slope; keep what its gradients need.

    S is 0 for the network of t, 1 for that of s.
    """
    i, j = tl.arange(0, 16)[None, :], tl.arange(0, 32)[None, :]
    features = mlp.sinusoids(time, sigma_min)
    h, slope = mlp.mish_and_slope(mlp.time_hidden(net, features, PREC, INTERP))
    mlp.save(saved[:, None] + 16 * S + i, features, live[:, None], PREC, INTERP)
    mlp.save(saved[:, None] + 32 + 32 * S + j, h, live[:, None], PREC, INTERP)
    return h, slope


@triton.jit
def _time_backward(
    nets, weight, dz0, slope_t, slope_s, saved, live, H: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr
):  # fmt: skip
    """Carry dL/dz0 back through both embeddings, whose rows of the first layer begin at `weight`."""
    i, j, k = tl.arange(0, 32), tl.arange(0, 32), tl.arange(0, H)
    tile = tl.load(weight + i[None, :] * H + k[:, None])
    de = mlp.edge_product(dz0, tile, tl.zeros((dz0.shape[0], 32), tl.float32), PREC, INTERP)
    mlp.save(saved[:, None] + 160 + i[None, :], de, live[:, None], PREC, INTERP)
    for S in tl.static_range(2):
        own = (i // 16 == S)[:, None]
        at = nets + S * mlp.TIME_NET + mlp.TIME_W1 + j[None, :] * 16 + (i % 16)[:, None]
        tile = tl.load(at, mask=own, other=0.0)
        dh = mlp.edge_product(de, tile, tl.zeros((dz0.shape[0], 32), tl.float32), PREC, INTERP)
        dh = dh * (slope_t if S == 0 else slope_s)
        mlp.save(saved[:, None] + 96 + 32 * S + j[None, :], dh, live[:, None], PREC, INTERP)
