"""Device functions of the GPU kernels. Rows are addressed in int64; M, N and D are runtime numbers.

All rows are contiguous. ``own_ptr`` holds the index among the points that each query has itself, or -1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels._triton_tile import any_of

RUNTIME = ["M", "N"]  # one compilation serves every number of queries and points
FREE = tl.constexpr(2**31 - 1)  # indices of free places count down from here


@triton.jit
def _products(
    q_ptr, x_ptr, offs_m, offs_n, M, N, D,
    PRECISION: tl.constexpr, IN_BF16: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Products [BLOCK_M, BLOCK_N] of factors, in their dtype."""
    dtype = q_ptr.dtype.element_ty
    product = tl.zeros([offs_m.shape[0], offs_n.shape[0]], dtype)
    for first in range(0, D, BLOCK_D):
        offs_d = first + tl.arange(0, BLOCK_D)
        mask_d = offs_d < D
        q = tl.load(q_ptr + offs_m[:, None] * D + offs_d[None, :], (offs_m < M)[:, None] & mask_d[None, :], 0.0)
        x_tile_ptr = x_ptr + offs_n[None, :].to(tl.int64) * D + offs_d[:, None]
        x = tl.load(x_tile_ptr, (offs_n < N)[None, :] & mask_d[:, None], 0.0)
        if IN_BF16:
            product = tl.dot(q.to(tl.bfloat16), x.to(tl.bfloat16), product)
        else:
            product = tl.dot(q, x, product, input_precision=PRECISION, out_dtype=dtype)
    return product


@triton.jit
def _keys(q_ptr, x_ptr, offs_m, offs_n, M, N, D, METRIC: tl.constexpr):
    """Keys [BLOCK_M, BLOCK_N] of rows as they are, by differences in float64; METRIC as in ``points.METRICS``."""
    key = tl.zeros([offs_m.shape[0], offs_n.shape[0]], tl.float64)
    q_sum = tl.zeros([offs_m.shape[0]], tl.float64)
    x_sum = tl.zeros([offs_n.shape[0]], tl.float64)
    for d in range(0, D):
        q = tl.load(q_ptr + offs_m * D + d, offs_m < M, 0.0).to(tl.float64)
        x = tl.load(x_ptr + offs_n.to(tl.int64) * D + d, offs_n < N, 0.0).to(tl.float64)
        if METRIC == 2:
            key -= q[:, None] * x[None, :]
        else:
            difference = q[:, None] - x[None, :]
            key += difference * difference
            q_sum += tl.abs(q)
            x_sum += tl.abs(x)
    if METRIC == 1:
        is_zero = (q_sum == 0.0)[:, None] | (x_sum == 0.0)[None, :]
        key = tl.where(is_zero, key * 0.0 + 1.0, 0.5 * key)
    return key


@triton.jit(do_not_specialize=RUNTIME)
def _candidates_kernel(
    q_ptr,
    x_ptr,
    offsets_ptr,
    own_ptr,
    floor_scores_ptr,
    floor_indices_ptr,
    scores_ptr,
    indices_ptr,
    points_a_part,
    M,
    N,
    D,
    METRIC: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    PRECISION: tl.constexpr,
    IN_BF16: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The PLACES points of least score for each query in each part of the points, in no order.

    Scores and indices are (M, parts, PLACES), infinite and -1 where a place is free.

    The score is the key (EXACT), or the point's offset less the product of factors. Equal scores go by index.
    With a floor only points beyond (floor score, floor index) count.
    """
    infinity = float("inf")
    dtype = scores_ptr.dtype.element_ty
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    own = tl.load(own_ptr + offs_m, mask_m, -1)
    places = tl.arange(0, PLACES)
    best = tl.full([BLOCK_M, PLACES], infinity, dtype)
    indices = tl.full([BLOCK_M, PLACES], FREE, tl.int32) - places[None, :]
    worst = tl.where(mask_m, infinity, -infinity).to(dtype)
    if HAS_FLOOR:
        floor = tl.load(floor_scores_ptr + offs_m, mask_m, infinity)[:, None]
        floor_index = tl.load(floor_indices_ptr + offs_m, mask_m, 0)[:, None]
    part = tl.program_id(1)
    start = part * points_a_part
    for first in range(start, tl.minimum(start + points_a_part, N), BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        if EXACT:
            score = _keys(q_ptr, x_ptr, offs_m, offs_n, M, N, D, METRIC)
        else:
            offset = tl.load(offsets_ptr + offs_n, offs_n < N, infinity)
            score = offset[None, :] - _products(q_ptr, x_ptr, offs_m, offs_n, M, N, D, PRECISION, IN_BF16, BLOCK_D)
        usable = (score == score) & (offs_n < N)[None, :] & (offs_n[None, :] != own[:, None])
        if HAS_FLOOR:
            usable = usable & ((score > floor) | ((score == floor) & (offs_n[None, :] > floor_index)))
        score = tl.where(usable, score, infinity)
        while any_of(score < worst[:, None]):
            least, column = tl.min(score, 1, return_indices=True, return_indices_tie_break_left=True)
            enters = (least < worst)[:, None]
            last = tl.max(tl.where(best == worst[:, None], indices, -1), 1)
            place = enters & (indices == last[:, None])
            best = tl.where(place, least[:, None], best)
            indices = tl.where(place, first + column[:, None], indices)
            score = tl.where(enters & (tl.arange(0, BLOCK_N)[None, :] == column[:, None]), infinity, score)
            worst = tl.where(mask_m, tl.max(best, 1), -infinity)
    outputs = (offs_m[:, None] * tl.num_programs(1) + part) * PLACES + places[None, :]
    tl.store(scores_ptr + outputs, best, mask_m[:, None])
    tl.store(indices_ptr + outputs, tl.where(best < infinity, indices, -1).to(tl.int64), mask_m[:, None])


@triton.jit(do_not_specialize=RUNTIME)
def _within_kernel(
    q_ptr,
    x_ptr,
    offsets_ptr,
    own_ptr,
    bounds_ptr,
    starts_ptr,
    counts_ptr,
    indices_ptr,
    M,
    N,
    D,
    FILL: tl.constexpr,
    PRECISION: tl.constexpr,
    IN_BF16: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Points whose product exceeds their offset plus the query's bound: how many, or (FILL) which, by index."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    own = tl.load(own_ptr + offs_m, mask_m, -1)
    bound = tl.load(bounds_ptr + offs_m, mask_m, float("inf"))
    count = tl.zeros([BLOCK_M], tl.int64)
    if FILL:
        start = tl.load(starts_ptr + offs_m, mask_m, 0)
    for first in range(0, N, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        offset = tl.load(offsets_ptr + offs_n, offs_n < N, float("inf"))
        product = _products(q_ptr, x_ptr, offs_m, offs_n, M, N, D, PRECISION, IN_BF16, BLOCK_D)
        within = (product <= offset[None, :] + bound[:, None]) == 0
        within = within & (offs_n < N)[None, :] & (offs_n[None, :] != own[:, None]) & mask_m[:, None]
        hits = within.to(tl.int32)
        if FILL:
            place = start[:, None] + count[:, None] + tl.cumsum(hits, 1) - 1
            values = tl.zeros([BLOCK_M, BLOCK_N], tl.int64) + offs_n[None, :]
            tl.store(indices_ptr + place, values, within)
        count += tl.sum(hits, 1)
    if not FILL:
        tl.store(counts_ptr + offs_m, count, mask_m)
