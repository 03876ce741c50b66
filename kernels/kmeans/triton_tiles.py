"""Device functions of the GPU kernels. Rows and features are addressed in int64, N and K are runtime numbers."""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ["N", "K"]  # one compilation serves every number of rows and centers


@triton.jit(do_not_specialize=RUNTIME)
def _nearest_center_kernel(
    x_ptr,
    centers_ptr,
    shift_ptr,
    factors_ptr,
    offsets_ptr,
    labels_ptr,
    sq_dists_ptr,
    unsure_ptr,
    scores_ptr,
    nearest_ptr,
    centers_a_part,
    N,
    K,
    D,
    stride_xn,
    stride_xd,
    error,
    tiny,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    IN_BF16: tl.constexpr,
):
    """Online argmin of offsets[j] - x.factors[j]; true distances; unsure where rounding may have decided.

    Where centers come in parts, the least two scores (2, parts, N) and the nearest center (parts, N) of each instead.
    """
    dtype = factors_ptr.dtype.element_ty
    infinity = float("inf")
    part, n_parts = tl.program_id(1), tl.num_programs(1)
    start_k = part * centers_a_part
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    rows_ptr = x_ptr + offs_n[:, None] * stride_xn
    best = tl.full([BLOCK_N], infinity, dtype)
    second = tl.full([BLOCK_N], infinity, dtype)
    nearest = tl.zeros([BLOCK_N], tl.int32)
    for first_k in range(start_k, tl.minimum(start_k + centers_a_part, K), BLOCK_K):
        offs_k = first_k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < K
        product = tl.zeros([BLOCK_N, BLOCK_K], dtype)
        for first_d in range(0, D, BLOCK_D):
            offs_d = first_d + tl.arange(0, BLOCK_D)
            mask_d = offs_d < D
            x = tl.load(rows_ptr + offs_d[None, :].to(tl.int64) * stride_xd, mask_n[:, None] & mask_d[None, :], 0.0)
            x = x.to(dtype) - tl.load(shift_ptr + offs_d, mask_d, 0.0)[None, :]
            factor_ptr = factors_ptr + offs_k[None, :].to(tl.int64) * D + offs_d[:, None]
            factor = tl.load(factor_ptr, mask_k[None, :] & mask_d[:, None], 0.0)
            if IN_BF16:
                product = tl.dot(x.to(tl.bfloat16), factor.to(tl.bfloat16), product)
            else:
                product = tl.dot(x, factor, product, input_precision=PRECISION, out_dtype=dtype)
        score = tl.load(offsets_ptr + offs_k, mask_k, infinity)[None, :] - product  # [BLOCK_N, BLOCK_K]
        score = tl.where(mask_k[None, :] & (score == score), score, infinity)
        tile_best, tile_index = tl.min(score, 1, return_indices=True, return_indices_tie_break_left=True)
        chosen = tl.arange(0, BLOCK_K)[None, :] == tile_index[:, None]
        tile_second = tl.min(tl.where(chosen, infinity, score), 1)
        second = tl.minimum(tl.maximum(best, tile_best), tl.minimum(second, tile_second))
        nearest = tl.where(tile_best < best, first_k + tile_index, nearest)
        best = tl.minimum(best, tile_best)

    if n_parts > 1:
        place = part.to(tl.int64) * N + offs_n
        tl.store(scores_ptr + place, best, mask_n)
        tl.store(scores_ptr + n_parts.to(tl.int64) * N + place, second, mask_n)
        tl.store(nearest_ptr + place, nearest, mask_n)
    else:
        _measure(
            x_ptr, centers_ptr, shift_ptr, labels_ptr, sq_dists_ptr, unsure_ptr, best, second, nearest,
            offs_n, mask_n, D, stride_xn, stride_xd, error, tiny, BLOCK_D,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "n_parts"])
def _nearest_of_parts_kernel(
    x_ptr,
    centers_ptr,
    shift_ptr,
    labels_ptr,
    sq_dists_ptr,
    unsure_ptr,
    scores_ptr,
    nearest_ptr,
    n_parts,
    N,
    D,
    stride_xn,
    stride_xd,
    error,
    tiny,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What ``_nearest_center_kernel`` finds of all centers, from what it has found of each part, in their order."""
    dtype = scores_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    best = tl.full([BLOCK_N], float("inf"), dtype)
    second = tl.full([BLOCK_N], float("inf"), dtype)
    nearest = tl.zeros([BLOCK_N], tl.int32)
    for part in range(0, n_parts):
        place = tl.cast(part, tl.int64) * N + offs_n
        part_best = tl.load(scores_ptr + place, mask_n, float("inf"))
        part_second = tl.load(scores_ptr + tl.cast(n_parts, tl.int64) * N + place, mask_n, float("inf"))
        part_nearest = tl.load(nearest_ptr + place, mask_n, 0)
        second = tl.minimum(tl.maximum(best, part_best), tl.minimum(second, part_second))
        nearest = tl.where(part_best < best, part_nearest, nearest)
        best = tl.minimum(best, part_best)
    _measure(
        x_ptr, centers_ptr, shift_ptr, labels_ptr, sq_dists_ptr, unsure_ptr, best, second, nearest,
        offs_n, mask_n, D, stride_xn, stride_xd, error, tiny, BLOCK_D,
    )  # fmt: skip


@triton.jit
def _measure(
    x_ptr, centers_ptr, shift_ptr, labels_ptr, sq_dists_ptr, unsure_ptr, best, second, nearest,
    offs_n, mask_n, D, stride_xn, stride_xd, error, tiny, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Labels, true distances, and whether rounding may have decided, of rows and their least two scores."""
    dtype = sq_dists_ptr.dtype.element_ty
    rows_ptr = x_ptr + offs_n[:, None] * stride_xn
    sq_dist = tl.zeros([offs_n.shape[0]], dtype)
    sq_norm = tl.zeros([offs_n.shape[0]], dtype)
    for first_d in range(0, D, BLOCK_D):
        offs_d = first_d + tl.arange(0, BLOCK_D)
        mask = mask_n[:, None] & (offs_d < D)[None, :]
        x = tl.load(rows_ptr + offs_d[None, :].to(tl.int64) * stride_xd, mask, 0.0).to(dtype)
        center = tl.load(centers_ptr + nearest[:, None].to(tl.int64) * D + offs_d[None, :], mask, 0.0)
        shifted = x - tl.load(shift_ptr + offs_d, offs_d < D, 0.0)[None, :]
        sq_dist += tl.sum((x - center) * (x - center), 1)
        sq_norm += tl.sum(shifted * shifted, 1)
    norm = tl.sqrt(sq_norm)
    reach = norm + tl.sqrt(sq_dist)  # a nearer center has at most this norm, which bounds its score's error
    sure = second - best > error * reach * (norm + 0.5 * reach) + tiny
    tl.store(labels_ptr + offs_n, tl.where(sq_dist < float("inf"), nearest, -1).to(tl.int64), mask_n)
    tl.store(sq_dists_ptr + offs_n, sq_dist, mask_n)
    tl.store(unsure_ptr + offs_n, (sure == 0).to(tl.int8), mask_n)


@triton.jit(do_not_specialize=RUNTIME)
def _decide_kernel(
    x_ptr,
    centers_ptr,
    labels_ptr,
    sq_dists_ptr,
    unsure_ptr,
    N,
    K,
    D,
    stride_xn,
    stride_xd,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Labels and distances of unsure rows by differences in float64; blocks without such a row end at once."""
    infinity = float("inf")
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    unsure = tl.load(unsure_ptr + offs_n, offs_n < N, 0) != 0
    if tl.max(unsure.to(tl.int32), 0) > 0:
        rows_ptr = x_ptr + offs_n * stride_xn
        best = tl.full([BLOCK_N], infinity, tl.float64)
        nearest = tl.zeros([BLOCK_N], tl.int32)
        has_nan = tl.zeros([BLOCK_N], tl.int32)
        for first_k in range(0, K, BLOCK_K):
            offs_k = first_k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < K
            sq_dist = tl.zeros([BLOCK_N, BLOCK_K], tl.float64)
            for d in range(0, D):
                x = tl.load(rows_ptr + tl.cast(d, tl.int64) * stride_xd, unsure, 0.0).to(tl.float64)
                center = tl.load(centers_ptr + offs_k.to(tl.int64) * D + d, mask_k, 0.0).to(tl.float64)
                difference = x[:, None] - center[None, :]
                sq_dist += difference * difference
                has_nan |= (x != x).to(tl.int32)
            sq_dist = tl.where(mask_k[None, :] & (sq_dist == sq_dist), sq_dist, infinity)
            tile_best, tile_index = tl.min(sq_dist, 1, return_indices=True, return_indices_tie_break_left=True)
            nearest = tl.where(tile_best < best, first_k + tile_index, nearest)
            best = tl.minimum(best, tile_best)
        sq_dist = best.to(sq_dists_ptr.dtype.element_ty)
        label = tl.where(sq_dist < infinity, nearest, -1).to(tl.int64)
        tl.store(labels_ptr + offs_n, label, unsure)
        tl.store(sq_dists_ptr + offs_n, tl.where(has_nan != 0, float("nan"), sq_dist), unsure)


@triton.jit
def _piece_sums_kernel(
    x_ptr,
    weights_ptr,
    order_ptr,
    starts_ptr,
    sums_ptr,
    counts_ptr,
    D,
    stride_xn,
    stride_xd,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Float64 sums of rows order[starts[p]:starts[p + 1]], which belong to one cluster, into row p."""
    piece = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    start = tl.load(starts_ptr + piece)
    stop = tl.load(starts_ptr + piece + 1)
    total = tl.zeros([BLOCK_D], tl.float64)
    count = tl.zeros([BLOCK_N], tl.float64)
    for first in range(start, stop, BLOCK_N):
        offs = first + tl.arange(0, BLOCK_N)
        mask = offs < stop
        row = tl.load(order_ptr + offs, mask, 0)
        x = tl.load(
            x_ptr + row[:, None] * stride_xn + offs_d[None, :] * stride_xd, mask[:, None] & mask_d[None, :], 0.0
        ).to(tl.float64)
        weight = mask.to(tl.float64)
        if HAS_WEIGHT:
            weight = tl.load(weights_ptr + row, mask, 0.0).to(tl.float64)
            x *= weight[:, None]
        total += tl.sum(x, 0)
        count += weight
    tl.store(sums_ptr + piece * D + offs_d, total, mask_d)
    if tl.program_id(1) == 0:
        tl.store(counts_ptr + piece, tl.sum(count, 0))


@triton.jit
def _cluster_sums_kernel(
    pieces_ptr, piece_counts_ptr, bounds_ptr, sums_ptr, counts_ptr, D, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Sums of the pieces bounds[j] … bounds[j + 1] of cluster j, in their order."""
    cluster = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    start = tl.load(bounds_ptr + cluster)
    stop = tl.load(bounds_ptr + cluster + 1)
    total = tl.zeros([BLOCK_D], tl.float64)
    count = tl.zeros([BLOCK_P], tl.float64)
    for first in range(start, stop, BLOCK_P):
        offs = first + tl.arange(0, BLOCK_P)
        mask = offs < stop
        total += tl.sum(
            tl.load(pieces_ptr + offs[:, None] * D + offs_d[None, :], mask[:, None] & mask_d[None, :], 0.0), 0
        )
        count += tl.load(piece_counts_ptr + offs, mask, 0.0)
    tl.store(sums_ptr + cluster * D + offs_d, total, mask_d)
    if tl.program_id(1) == 0:
        tl.store(counts_ptr + cluster, tl.sum(count, 0))


@triton.jit(do_not_specialize=["N", "first_block", "n_candidates"])
def _seeding_kernel(
    x_ptr,
    weights_ptr,
    centers_ptr,
    closest_ptr,
    masses_ptr,
    N,
    D,
    stride_xn,
    stride_xd,
    first_block,
    n_candidates,
    WINNERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """closest[i] = min(closest[i], |x_i - winner|^2), then each candidate's mass if it were added too.

    centers holds the winner (WINNERS is 1) or none (0), and then the candidates.
    """
    dtype = closest_ptr.dtype.element_ty
    block = tl.program_id(0).to(tl.int64) + first_block
    offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    closest = tl.load(closest_ptr + offs_n, mask_n, 0.0)
    weight = mask_n.to(tl.float64)
    if HAS_WEIGHT:
        weight = tl.load(weights_ptr + offs_n, mask_n, 0.0).to(tl.float64)
    for j in range(0, n_candidates + WINNERS):
        sq_dist = tl.zeros([BLOCK_N], dtype)
        for first_d in range(0, D, BLOCK_D):
            offs_d = first_d + tl.arange(0, BLOCK_D)
            mask_d = offs_d < D
            x_tile_ptr = x_ptr + offs_n[:, None] * stride_xn + offs_d[None, :].to(tl.int64) * stride_xd
            x = tl.load(x_tile_ptr, mask_n[:, None] & mask_d[None, :], 0.0).to(dtype)
            difference = x - tl.load(centers_ptr + j * D + offs_d, mask_d, 0.0)[None, :]
            sq_dist += tl.sum(difference * difference, 1)
        smaller = tl.where(sq_dist < closest, sq_dist, closest)  # NaN leaves the row as far as it was
        if WINNERS == 1:
            closest = tl.where(j == 0, smaller, closest)
        if j >= WINNERS:
            mass = tl.sum(smaller.to(tl.float64) * weight, 0)
            tl.store(masses_ptr + block * n_candidates + (j - WINNERS), mass)
    if WINNERS == 1:
        tl.store(closest_ptr + offs_n, closest, mask_n)
